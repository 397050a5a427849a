"""Retrieval metrics through trec_eval (pytrec_eval), free of its tie-breaking and its rounding.

trec_eval compares scores as 32-bit floats and ranks equal ones by passage id, so a metric would
depend on how passages are called. Here rankings are made first, in full precision, and trec_eval
only sees ranks. Equal scores are ranked against the system: the less relevant passage first, so
that a constant scorer gains nothing from the order of the data.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pytrec_eval
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from d2llm.errors import InputError

#: {query id: {passage id: score}}, any hashable ids.
Run: TypeAlias = Mapping[Any, Mapping[Any, float]]
#: {query id: {passage id: relevance}}, relevant where above 0.
Qrels: TypeAlias = Mapping[Any, Mapping[Any, int]]

CUT = 10
RECALL_AT = (1, 5, 10, 100)


def ir_metrics(
    scores: ArrayLike | Run, qrels: ArrayLike | Qrels | None = None, recall_at: Sequence[int] = RECALL_AT
) -> dict[str, float]:
    """Ranking metrics averaged over queries.

    Args:
        scores: (Nq, Np) float, or a run {query id: {passage id: score}}. In a matrix, minus
            infinity marks a passage that was not retrieved, as absence does in a run.
        qrels: relevance: (Nq, Np) integers, or {query id: {passage id: relevance}} (for a matrix
            the ids are row and column numbers), or None for a square matrix whose diagonal is relevant.
        recall_at: the k of Recall@k.

    Returns:
        ``mrr`` (the whole ranking), ``mrr@10``, ``map``, ``ndcg@10``, ``recall@k`` for each k, and
        ``queries``, the number of queries averaged: those with at least one relevant passage. A
        query of ``qrels`` that the run lacks counts 0.

    Raises:
        InputError: for NaN or plus infinity among the scores, shapes that do not match, no query
            with a relevant passage, or a k below 1.
    """
    if any(k < 1 for k in recall_at):
        raise InputError(f"recall_at: expected numbers of at least 1, got {tuple(recall_at)}")
    if not isinstance(scores, Mapping):
        scores = np.asarray(scores)
    judged = {query: row for query, row in _qrels(scores, qrels).items() if any(r > 0 for r in row.values())}
    if not judged:
        raise InputError("qrels: expected a relevant passage for at least one query, got none")
    names = {query: f"q{number}" for number, query in enumerate(judged)}
    ranked: dict[str, dict[str, float]] = {}
    relevance: dict[str, dict[str, int]] = {}
    for query, name in names.items():
        order = _ranking(_row(scores, query), judged[query])
        passages = {passage: f"p{number}" for number, passage in enumerate(dict.fromkeys([*order, *judged[query]]))}
        ranked[name] = {passages[p]: float(len(order) - rank) for rank, p in enumerate(order)}
        # trec_eval knows no negative grades; they mean "not relevant" too.
        relevance[name] = {passages[p]: max(int(grade), 0) for p, grade in judged[query].items()}
    return _evaluate(ranked, relevance, recall_at)


def reranked_scores(first_stage: ArrayLike, candidates: ArrayLike, scores: ArrayLike) -> NDArray[np.float64]:
    """Scores of a ranking whose candidates were re-ordered by a second stage.

    Args:
        first_stage: (Nq, Np) float, scores of the first stage.
        candidates: (Nq, C) integers, distinct columns that were re-ranked.
        scores: (Nq, C) float, their second-stage scores.

    Returns:
        (Nq, Np) float64: candidates first, in the order of ``scores``, the rest behind them in the
        order of ``first_stage``; ties stay ties. The values are ranks from below.

    Raises:
        InputError: for shapes that do not match, NaN, or a candidate out of range or named twice.
    """
    first, chosen, second = np.asarray(first_stage), np.asarray(candidates), np.asarray(scores)
    if first.ndim != 2 or chosen.ndim != 2 or len(chosen) != len(first):
        raise InputError(f"candidates: expected ({len(first)}, C) for first_stage {first.shape}, got {chosen.shape}")
    if second.shape != chosen.shape:
        raise InputError(f"scores: expected {chosen.shape} as candidates, got {second.shape}")
    for name, values in (("first_stage", first), ("scores", second)):
        if np.isnan(values).any():
            raise InputError(f"{name}: expected numbers, got NaN")
    if chosen.size and (chosen.min() < 0 or chosen.max() >= first.shape[1]):
        raise InputError(f"candidates: expected columns from 0 to {first.shape[1] - 1}")
    if any(len(set(row)) != len(row) for row in chosen.tolist()):
        raise InputError("candidates: expected distinct columns in each row")
    result = rankdata(first, method="min", axis=1).astype(np.float64)
    if chosen.size:
        np.put_along_axis(result, chosen, first.shape[1] + rankdata(second, method="min", axis=1), axis=1)
    return result


def _qrels(scores: ArrayLike | Run, qrels: ArrayLike | Qrels | None) -> Qrels:
    """Relevance as a mapping, its ids checked against a matrix of scores."""
    if isinstance(scores, Mapping):
        if not isinstance(qrels, Mapping):
            raise InputError("qrels: expected {query id: {passage id: relevance}} beside a run")
        return qrels
    shape = np.shape(scores)
    if len(shape) != 2 or 0 in shape:
        raise InputError(f"scores: expected (Nq, Np), not empty, got {shape}")
    if qrels is None:
        if shape[0] != shape[1]:
            raise InputError(f"qrels: needed unless scores are square, got scores of {shape}")
        return {number: {number: 1} for number in range(shape[0])}
    if isinstance(qrels, Mapping):
        for query, row in qrels.items():
            if query not in range(shape[0]) or any(passage not in range(shape[1]) for passage in row):
                raise InputError(f"qrels: expected row and column numbers of scores {shape}, got {query!r}: {row!r}")
        return qrels
    grades = np.asarray(qrels)
    if grades.shape != shape:
        raise InputError(f"qrels: expected {shape} as scores, got {grades.shape}")
    return {row: {int(c): int(grades[row, c]) for c in np.flatnonzero(grades[row])} for row in range(shape[0])}


def _row(scores: ArrayLike | Run, query: Any) -> tuple[list[Any], NDArray[np.float64]]:
    """Ids and scores of the passages retrieved for one query."""
    if isinstance(scores, Mapping):
        row = scores.get(query, {})
        ids, values = list(row), np.fromiter(row.values(), dtype=np.float64, count=len(row))
    else:
        values = np.asarray(scores)[query].astype(np.float64)
        ids = list(range(len(values)))
    if np.isnan(values).any() or np.isposinf(values).any():
        raise InputError(f"scores: expected numbers below infinity, got NaN or inf for query {query!r}")
    retrieved = np.flatnonzero(~np.isneginf(values))
    return [ids[number] for number in retrieved], values[retrieved]


def _ranking(row: tuple[list[Any], NDArray[np.float64]], relevance: Mapping[Any, int]) -> list[Any]:
    ids, values = row
    grades = np.array([relevance.get(passage, 0) for passage in ids])
    # The last key is the first to sort by; lexsort is stable.
    return [ids[number] for number in np.lexsort((grades, -values))] if ids else []


def _evaluate(
    ranked: dict[str, dict[str, float]], relevance: dict[str, dict[str, int]], recall_at: Sequence[int]
) -> dict[str, float]:
    recall = "recall." + ",".join(str(k) for k in sorted(set(recall_at)))
    measures = {"recip_rank", "map", f"ndcg_cut.{CUT}"} | ({recall} if recall_at else set())
    results = pytrec_eval.RelevanceEvaluator(relevance, measures).evaluate(ranked)
    # An empty ranking may be left out of the results: it scores 0 everywhere.
    rows = [results.get(name, {}) for name in relevance]

    def mean(measure: str) -> float:
        return float(np.mean([row.get(measure, 0.0) for row in rows]))

    reciprocal = np.array([row.get("recip_rank", 0.0) for row in rows])
    metrics = {
        "mrr": mean("recip_rank"),
        f"mrr@{CUT}": float(np.where(reciprocal >= 1 / CUT, reciprocal, 0.0).mean()),
        "map": mean("map"),
        f"ndcg@{CUT}": mean(f"ndcg_cut_{CUT}"),
    }
    metrics.update({f"recall@{k}": mean(f"recall_{k}") for k in recall_at})
    metrics["queries"] = float(len(rows))
    return metrics
