"""The best passages of queries by interaction, by BM25, by both, or by cosine; each passage is scored."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from d2llm.bm25 import Matches, top_indices
from d2llm.fusion import Moments, fuse
from d2llm.index.model import project
from d2llm.index.ranking import nearest
from d2llm.index.snapshot import Snapshot
from d2llm_kernels import IEM
from d2llm_kernels.rough.candidates import Best, candidates

# Scores that lie in memory at a time: 64 MB.
_SCORES = 1 << 24
# From so many passages on, so many stand for all where the deviation of a query's scores is taken.
_MANY, _SAMPLE = 16384, 1024

Scores: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True)
class Found:
    """What was found for a query: n ``scores``, best first, and ``positions`` in the index.

    ``ranks``: by name of a measure, the rank from 1 that each has by it, 0 where that measure did not find it.
    """

    scores: Scores
    positions: NDArray[np.int64]
    ranks: dict[str, NDArray[np.int64]]


class Searching:
    """One state of an index, searched by one branch of its interaction module.

    Args:
        snapshot: the state.
        head: the interaction module.
        task: the branch.
        among: positions (N,) int64, ascending, of the passages that may be found. A row below is a number among them.
    """

    def __init__(self, snapshot: Snapshot, head: IEM, task: int, among: Tensor) -> None:
        self._snapshot, self._head, self._among = snapshot, head, among
        self._search = snapshot.prepared(head, task)
        #: Position of each row (N,).
        self.places: NDArray[np.int64] = among.numpy()

    @torch.inference_mode()
    def iem(self, vectors: Tensor, k: int) -> list[Found]:
        """The k best of each query (Nq, D) by the interaction module."""
        a = self.projected(vectors)

        def gather(rows: Tensor) -> Tensor:
            return self._snapshot.gather(self._among[rows.cpu()])

        return self._ranked("iem", *self._search.ranked(a, self.first_look(a, k), gather, k))

    @torch.inference_mode()
    def cosine(self, vectors: Tensor, k: int) -> list[Found]:
        """The k best of each query (Nq, D) by the cosine of the student's vectors."""
        best = self.nearest(vectors, k)
        return self._ranked("cosine", best.values, best.indices)

    def first_look(self, a: Tensor, k: int) -> Best:
        """Rows among which are the k best of each projected query (Nq, F), by scores that may be rounded."""
        return self._search.first_look(a, self._snapshot.chunks("projected", self._among), k)

    def nearest(self, vectors: Tensor, count: int) -> Best:
        """Rows of the ``count`` nearest of each query (Nq, D) by cosine."""
        return nearest(vectors, self._snapshot.chunks("unit", self._among), min(count, len(self.places)))

    def chosen(self, a: Tensor, count: int, certified: bool) -> list[NDArray[np.int64]]:
        """Positions of the ``count`` best of each projected query (Nq, F) by the surrogate, of what that covers.

        Args:
            certified: choose as was certified: by the surrogate's engine, if it has one, which may miss some.
        """
        assert self._snapshot.surrogate is not None
        asked = self._snapshot.surrogate[0].asked(a, count, self._among) if certified else None
        return list(self.scanned(a, count).indices.numpy()) if asked is None else asked

    def scanned(self, a: Tensor, count: int) -> Best:
        """What :meth:`chosen` chooses without an engine, with the surrogate's products."""
        assert self._snapshot.surrogate is not None
        return Best(count, *self._snapshot.surrogate[0].scan(a, count, self._among))

    def bm25(self, texts: Sequence[str], k: int) -> list[Found]:
        """The k best of each query by BM25, those alone that share a term with it."""
        found = []
        for matches, _ in map(self.lexical, texts):
            rows = matches.best(k)
            found.append(Found(matches.at(rows), self.places[rows], {"bm25": np.arange(1, len(rows) + 1)}))
        return found

    @torch.inference_mode()
    def hybrid(self, vectors: Tensor, texts: Sequence[str], k: int, weight: float) -> list[Found]:
        """The k best of each query by IEM and BM25 together, BM25 weighing ``weight``.

        Where passages are rounded, rounded scores choose candidates, which are scored again in full.
        """
        step = max(1, _SCORES // len(self.places))
        found = []
        for start in range(0, len(texts), step):
            a = self.projected(vectors[start : start + step])
            for query, rough, text in zip(a, self.rough(a), texts[start : start + step], strict=True):
                matches, moments = self.lexical(text)
                among = self.moments(query, rough), moments
                lexical = matches.of_all(len(self.places))
                scores, rows = self.best(query, self.rows, rough, k, lexical, weight, among)
                ranks = {"iem": _ranks(rough, rows), "bm25": matches.ranks(rows)}
                found.append(Found(scores, self.places[rows], ranks))
        return found

    def rows_at(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of passages at positions."""
        # Where all may be found these are the same.
        every = len(self.places) == self._snapshot.manifest.rows
        return positions if every else np.searchsorted(self.places, positions)

    def projected(self, vectors: Tensor) -> Tensor:
        """Queries (Nq, D) as the interaction module takes them: (Nq, F)."""
        return project(self._head, vectors, "query")

    def lexical(self, text: str) -> tuple[Matches, Moments]:
        """What BM25 finds for a query among the rows, and moments of its scores of all that is not deleted."""
        positions, scores = self._snapshot.bm25.matches(text)
        moments = Moments.of(scores, self._snapshot.size - len(scores))
        if self._some:
            found = np.isin(positions, self.places, assume_unique=True)
            positions, scores = positions[found], scores[found]
        return Matches(self.rows_at(positions), scores), moments

    def rough(self, a: Tensor) -> Scores:
        """Scores of projected queries (Nq, F) with every passage, (Nq, N), rounded where that is faster."""
        return self._search.scores(a, self._snapshot.chunks("projected", self._among)).float().cpu().numpy()

    def rough_at(self, a: Tensor, rows: NDArray[np.int64]) -> Scores:
        """What ``rough`` gives for a projected query (F,) at rows (C,)."""
        return self._rough_of(a, self._among[torch.from_numpy(rows)])

    def moments(self, a: Tensor, rough: Scores | None = None) -> Moments:
        """Moments of the scores of a projected query (F,), as ``rough`` gives them.

        They are of all passages, or of many some, whichever may be found: a deviation is then known to 2 %, and a
        filter changes no score. They are evenly spaced and the same in every search.

        Args:
            rough: (N,) scores of the rows, if they are known.
        """
        live = self._snapshot.live
        step = 1 if len(live) < _MANY else len(live) // _SAMPLE
        return Moments.of(self._rough_of(a, live[::step]) if rough is None or self._some else rough[::step])

    def exact(self, a: Tensor, rows: NDArray[np.int64]) -> Scores:
        """Scores in full of a projected query (F,) with passages at ascending rows (C,)."""
        taken = self._snapshot.projected.take(self._among[torch.from_numpy(rows)])
        scores: Scores = self._search.scores_of(a, taken, exact=True).float().cpu().numpy()
        return scores

    def best(
        self,
        a: Tensor,
        rows: NDArray[np.int64],
        rough: Scores,
        k: int,
        lexical: Scores | None = None,
        weight: float = 0,
        among: tuple[Moments, Moments] | None = None,
    ) -> tuple[Scores, NDArray[np.int64]]:
        """Scores and rows of the k best of one query, projected (F,), best first; fewer where there are fewer.

        Args:
            rows: (C,) ascending, those that may be found.
            rough: (C,) their scores as ``rough`` gives them, which choose what is scored in full.
            lexical: (C,) those by BM25, to rank by both; None to rank by the interaction module alone.
            weight: what BM25 weighs.
            among: moments of the scores by either.
        """
        first = rough if lexical is None else fuse(rough, lexical, weight, among)
        few = np.sort(top_indices(first, min(candidates(k), len(rows)))) if len(rows) else rows
        scores = self.exact(a, rows[few])
        if lexical is not None:
            scores = fuse(scores, lexical[few], weight, among)
        order = top_indices(scores, min(k, len(few))) if len(few) else few
        return scores[order], rows[few[order]]

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """All rows (N,)."""
        return np.arange(len(self.places))

    @property
    def _some(self) -> bool:
        """Whether some passages that are not deleted may not be found."""
        return len(self.places) < self._snapshot.size

    def _rough_of(self, a: Tensor, positions: Tensor) -> Scores:
        taken = self._snapshot.projected.take(positions)
        scores: Scores = self._search.scores_of(a, taken).float().cpu().numpy()
        return scores

    def _ranked(self, measure: str, values: Tensor, rows: Tensor) -> list[Found]:
        """What one measure found, both arguments (Nq, k)."""
        ranks = {measure: np.arange(1, values.shape[1] + 1)}
        pairs = zip(values.float().cpu().numpy(), rows.cpu().numpy(), strict=True)
        return [Found(scores, self.places[found], ranks) for scores, found in pairs]


def _ranks(scores: Scores, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Ranks from 1 of some rows among all scores."""
    return np.array([int((scores > scores[row]).sum()) + 1 for row in rows], np.int64)
