"""A second stage that reads query and passage together: the teacher, or any cross-encoder."""

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from d2llm.errors import InputError
from d2llm.evaluation.run import NOTHING, Run
from d2llm.evaluation.scorers import Found

#: N queries, N passages -> (N,) scores, higher is better.
Judge = Callable[[Sequence[str], Sequence[str]], NDArray[np.floating]]

#: Passages of every query that a second stage judges.
CANDIDATES = 10


def rerank(
    judge: Judge,
    first: Found,
    queries: Mapping[str, str],
    passages: Mapping[str, str],
    candidates: int = CANDIDATES,
) -> Found:
    """The run of a first stage, its best passages re-ordered.

    Args:
        judge: the second stage.
        first: what the first stage found.
        queries, passages: texts by id.
        candidates: best passages of each query that are judged; all that it has, where there are fewer.

    Returns:
        The candidates first, in the judge's order, the rest behind them in the order of the first stage; equal scores
        stay equal. The time to search is that of both stages.

    Raises:
        InputError: for candidates below 1, a query or passage whose text is not there, or scores of the judge that are
            NaN or infinite.
    """
    if candidates < 1:
        raise InputError(f"candidates: expected at least 1, got {candidates}")
    start = time.perf_counter()
    runs = tuple(_reranked(judge, run, queries, passages, candidates) for run in first.runs)
    taken = 1000 * (time.perf_counter() - start) / (len(first.runs) * len(first.runs[0].queries))
    return Found(runs, {**first.cost, "search_ms": first.cost.get("search_ms", 0.0) + taken})


def _reranked(judge: Judge, run: Run, queries: Mapping[str, str], passages: Mapping[str, str], candidates: int) -> Run:
    chosen = run.indices[:, :candidates]
    asked = np.argwhere(chosen != NOTHING)
    second = np.full(chosen.shape, -np.inf)
    if len(asked):
        ids = [(run.queries[row], run.passages[chosen[row, column]]) for row, column in asked.tolist()]
        if absent := [pair for pair in ids if pair[0] not in queries or pair[1] not in passages]:
            raise InputError(
                f"first stage: expected queries and passages of the data, got {len(absent)} that it lacks, such as "
                f"{absent[0]}"
            )
        values = np.asarray(judge([queries[q] for q, _ in ids], [passages[p] for _, p in ids]), np.float64)
        if wrong := int((~np.isfinite(values)).sum()):
            raise InputError(f"second stage: expected finite scores, got NaN or infinity for {wrong} of {len(ids)}")
        second[tuple(asked.T)] = values
    # Candidates that are not there rank last; a stable order keeps the first stage's among equals.
    order = np.argsort(-second, axis=1, kind="stable")
    rest, scores = run.scores[:, candidates:], np.full(run.scores.shape, -np.inf)
    scores[:, :candidates] = np.take_along_axis(second, order, axis=1)
    lowest = np.where(np.isneginf(second), np.inf, second).min(axis=1, initial=np.inf, keepdims=True)
    ranks = rankdata(-rest, method="dense", axis=1) if rest.size else rest
    scores[:, candidates:] = np.where(np.isneginf(rest), -np.inf, np.where(np.isinf(lowest), 0, lowest) - ranks)
    indices = np.concatenate([np.take_along_axis(chosen, order, axis=1), run.indices[:, candidates:]], axis=1)
    return Run(run.queries, run.passages, indices, scores)
