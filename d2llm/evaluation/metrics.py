"""Metrics of runs, as trec_eval defines them but for equal scores.

trec_eval ranks equal scores by passage id, so that a metric would depend on how passages are called. Here they are
ranked against the system: the less relevant passage first, so that a constant scorer gains nothing.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from d2llm.errors import InputError
from d2llm.evaluation.run import NOTHING, Run

#: {query id: {passage id: relevance}}, relevant where above 0; a lower grade and none at all both mean "not relevant".
Qrels = Mapping[str, Mapping[str, int]]
Values = NDArray[np.float64]

METRICS = ("ndcg@10", "mrr", "mrr@10", "map", "recall@1", "recall@10", "recall@100")
_NAME = re.compile(r"(ndcg|mrr|map|recall|p|judged)(?:@([1-9]\d*))?")
#: What says nothing over a whole ranking.
_NEEDS_CUT = ("recall", "p", "judged")


@dataclass(frozen=True)
class _Ranking:
    """One query: grades of its ranking, best first, which of them are judged, and the best grades there are."""

    grades: Values
    judged: NDArray[np.bool_]
    ideal: Values


def check_metrics(names: Sequence[str]) -> list[str]:
    """The names, each once.

    Raises:
        InputError: for none, or one that is no metric.
    """
    for name in names:
        match = _NAME.fullmatch(name)
        if match is None or (match[1] in _NEEDS_CUT and match[2] is None):
            raise InputError(
                "metrics: expected ndcg, mrr or map, each also with a cut as in ndcg@10, recall@K, p@K or judged@K, "
                f"got {name!r}"
            )
    if not names:
        raise InputError("metrics: expected at least one, got none")
    return list(dict.fromkeys(names))


def judged_queries(qrels: Qrels) -> list[str]:
    """The queries that can be measured: those with a relevant passage.

    Raises:
        InputError: if there is none.
    """
    queries = [query for query, row in qrels.items() if any(grade > 0 for grade in row.values())]
    if not queries:
        raise InputError("qrels: expected a relevant passage for at least one query, got none")
    return queries


def per_query(run: Run, qrels: Qrels, metrics: Sequence[str] = METRICS) -> dict[str, Values]:
    """Every metric of every query of :func:`judged_queries`, in that order; a query that the run lacks has 0.

    Args:
        run: what a system found.
        qrels: which passages are relevant.
        metrics: ``ndcg`` (gain is the grade), ``mrr``, ``map`` (of all relevant passages, found or not), each over the
            whole run or, as in ``ndcg@10``, over its best; ``recall@k``; ``p@k``, of k whether found or not;
            ``judged@k``, the share of the best that somebody has judged.

    Returns:
        {metric: (Nq,) float64 in [0, 1]}.

    Raises:
        InputError: for an unknown metric, or no query with a relevant passage.
    """
    names, queries = check_metrics(metrics), judged_queries(qrels)
    measures = {name: _measure(name) for name in names}
    rows = {query: number for number, query in enumerate(run.queries)}
    wanted = {passage for query in queries for passage in qrels[query]}
    columns = {passage: number for number, passage in enumerate(run.passages) if passage in wanted}
    result = {name: np.zeros(len(queries)) for name in names}
    for place, query in enumerate(queries):
        if query in rows:
            ranking = _ranking(run, rows[query], qrels[query], columns)
            for name, measure in measures.items():
                result[name][place] = measure(ranking)
    return result


def _ranking(run: Run, row: int, relevance: Mapping[str, int], columns: Mapping[str, int]) -> _Ranking:
    found = run.indices[row] != NOTHING
    indices, scores = run.indices[row][found], run.scores[row][found]
    grades, judged = np.zeros(len(indices)), np.zeros(len(indices), bool)
    for passage, grade in relevance.items():
        if passage in columns:
            place = indices == columns[passage]
            grades[place], judged[place] = max(grade, 0), True
    # The last key is the first to sort by.
    order = np.lexsort((grades, -scores))
    ideal = np.sort([grade for grade in relevance.values() if grade > 0])[::-1].astype(np.float64)
    return _Ranking(grades[order], judged[order], ideal)


def _measure(name: str) -> Callable[[_Ranking], float]:
    kind, cut = _NAME.fullmatch(name).groups()  # type: ignore[union-attr]
    k = None if cut is None else int(cut)

    def ndcg(ranking: _Ranking) -> float:
        return _gain(ranking.grades[:k]) / _gain(ranking.ideal[:k])

    def mrr(ranking: _Ranking) -> float:
        relevant = np.flatnonzero(ranking.grades[:k])
        return 1 / (1 + relevant[0]) if len(relevant) else 0.0

    def average_precision(ranking: _Ranking) -> float:
        places = np.flatnonzero(ranking.grades[:k])
        return float((np.arange(1, 1 + len(places)) / (1 + places)).sum() / len(ranking.ideal))

    def recall(ranking: _Ranking) -> float:
        return np.count_nonzero(ranking.grades[:k]) / len(ranking.ideal)

    def precision(ranking: _Ranking) -> float:
        return np.count_nonzero(ranking.grades[:k]) / int(cut)

    def judged(ranking: _Ranking) -> float:
        return np.count_nonzero(ranking.judged[:k]) / int(cut)

    kinds = {"ndcg": ndcg, "mrr": mrr, "map": average_precision, "recall": recall, "p": precision, "judged": judged}
    return kinds[kind]


def _gain(grades: Values) -> float:
    return float((grades / np.log2(np.arange(2, 2 + len(grades)))).sum())
