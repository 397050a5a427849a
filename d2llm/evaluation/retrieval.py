"""Retrieval metrics of whole matrices of scores, and matrices that a second stage re-orders."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from d2llm.errors import InputError
from d2llm.evaluation.metrics import per_query
from d2llm.evaluation.run import Run, best, check_finite

#: {query id: {passage id: score}}, any hashable ids.
Scores: TypeAlias = Mapping[Any, Mapping[Any, float]]
#: {query id: {passage id: relevance}}, relevant where above 0.
Judgements: TypeAlias = Mapping[Any, Mapping[Any, int]]

CUT = 10
RECALL_AT = (1, 5, 10, 100)


def ir_metrics(
    scores: ArrayLike | Scores, qrels: ArrayLike | Judgements | None = None, recall_at: Sequence[int] = RECALL_AT
) -> dict[str, float]:
    """Ranking metrics averaged over queries, for as few passages as a matrix of scores holds.

    Args:
        scores: (Nq, Np) float, or {query id: {passage id: score}}. In a matrix, minus
            infinity marks a passage that was not retrieved, as absence does in a mapping.
        qrels: relevance: (Nq, Np) integers, or {query id: {passage id: relevance}} (for a matrix
            the ids are row and column numbers), or None for a square matrix whose diagonal is relevant.
        recall_at: the k of Recall@k.

    Returns:
        ``mrr`` (the whole ranking), ``mrr@10``, ``map``, ``ndcg@10``, ``recall@k`` for each k, and
        ``queries``, the number of queries averaged: those with at least one relevant passage. A
        query of ``qrels`` that the scores lack counts 0.

    Raises:
        InputError: for NaN or plus infinity among the scores, shapes that do not match, no query
            with a relevant passage, or a k below 1.
    """
    values = ir_values(scores, qrels, recall_at)
    return {name: float(row.mean()) for name, row in values.items()} | {"queries": float(len(values["mrr"]))}


def ir_values(
    scores: ArrayLike | Scores, qrels: ArrayLike | Judgements | None = None, recall_at: Sequence[int] = RECALL_AT
) -> dict[str, NDArray[np.float64]]:
    """The same of every query, (Nq,) a metric, for the queries with at least one relevant passage.

    Raises:
        InputError: as :func:`ir_metrics` does.
    """
    if any(k < 1 for k in recall_at):
        raise InputError(f"recall_at: expected numbers of at least 1, got {tuple(recall_at)}")
    if not isinstance(scores, Mapping):
        scores = np.asarray(scores)
    run, judged = _run(scores), _qrels(scores, qrels)
    names = ["mrr", f"mrr@{CUT}", "map", f"ndcg@{CUT}", *(f"recall@{k}" for k in recall_at)]
    return per_query(run, judged, names)


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


def _run(scores: NDArray | Scores) -> Run:
    if isinstance(scores, Mapping):
        return Run.of_mapping(scores)
    if scores.ndim != 2 or 0 in scores.shape:
        raise InputError(f"scores: expected (Nq, Np), not empty, got {scores.shape}")
    values = scores.astype(np.float64)
    for query, row in enumerate(values):
        check_finite(row[~np.isneginf(row)], query)
    # Row and column numbers serve as ids: whatever tells them apart will do.
    return Run(range(len(values)), range(values.shape[1]), *best(values, values.shape[1]))  # type: ignore[arg-type]


def _qrels(scores: NDArray | Scores, qrels: ArrayLike | Judgements | None) -> Judgements:
    """Relevance as a mapping, its ids checked against a matrix of scores."""
    if isinstance(scores, Mapping):
        if not isinstance(qrels, Mapping):
            raise InputError("qrels: expected {query id: {passage id: relevance}} beside a mapping of scores")
        return qrels
    shape = scores.shape
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
