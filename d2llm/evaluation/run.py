"""A run: the passages that one system ranks best for every query."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from d2llm.bm25 import top_indices
from d2llm.errors import InputError

#: Passages that a system gives for a query unless told otherwise.
DEPTH = 1000
#: In ``Run.indices``: nothing found.
NOTHING = -1


@dataclass(frozen=True)
class Run:
    """The best passages of Nq queries, 8 bytes each.

    Queries and passages go by id. Which of equal scores stands first says nothing: metrics rank them against the
    system (see :mod:`d2llm.evaluation.metrics`).
    """

    queries: Sequence[str]
    #: Ids of the passages that ``indices`` count.
    passages: Sequence[str]
    #: (Nq, depth) int32, best first; ``NOTHING`` behind the last passage of a query.
    indices: NDArray[np.int32]
    #: (Nq, depth) floating, higher is better; minus infinity where there is no passage.
    scores: NDArray[np.floating]

    def found(self) -> NDArray[np.int64]:
        """Passages that each query has, (Nq,)."""
        return (self.indices != NOTHING).sum(axis=1)

    @classmethod
    def of_mapping(cls, rows: Mapping[str, Mapping[str, float]]) -> "Run":
        """A run of {query id: {passage id: score}}, as precise as the scores are.

        Raises:
            InputError: for NaN or infinite scores.
        """
        passages = {name: number for number, name in enumerate(dict.fromkeys(p for row in rows.values() for p in row))}
        shape = (len(rows), max(map(len, rows.values()), default=0))
        indices, scores = np.full(shape, NOTHING, np.int32), np.full(shape, -np.inf)
        for place, (query, row) in enumerate(rows.items()):
            values = np.fromiter(row.values(), np.float64, len(row))
            check_finite(values, query)
            order = np.argsort(-values, kind="stable")
            names = list(row)
            indices[place, : len(row)] = [passages[names[number]] for number in order]
            scores[place, : len(row)] = values[order]
        return cls(list(rows), list(passages), indices, scores)


def best(rows: NDArray[np.floating], depth: int, above: float = -np.inf) -> tuple[NDArray[np.int32], NDArray]:
    """The ``depth`` best columns of complete rows of scores: indices and scores as in :class:`Run`.

    Where equal scores stand at the cut, the lower columns are kept.

    Args:
        rows: (n, Np) floating.
        depth: how many, fewer where there are fewer columns.
        above: a passage is found if its score is higher than that.
    """
    few = min(depth, rows.shape[1])
    indices = np.stack([top_indices(row, few) for row in rows])
    scores = np.take_along_axis(rows, indices, axis=1)
    missed = ~(scores > above)
    return np.where(missed, NOTHING, indices).astype(np.int32), np.where(missed, -np.inf, scores).astype(rows.dtype)


def check_finite(values: NDArray[np.floating], query: object) -> None:
    """Make sure that a query's scores are numbers.

    Raises:
        InputError: for NaN or infinity.
    """
    if not np.isfinite(values).all():
        wrong = values[~np.isfinite(values)]
        raise InputError(f"scores: expected finite numbers, got {wrong[0]} {len(wrong)} times for query {query!r}")
