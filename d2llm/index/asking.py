"""What a search asks for, checked, and the way that is taken to find it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from d2llm.errors import InputError
from d2llm.index.filters import Filters, check_filters, passing
from d2llm.index.inputs import check_count, check_ids
from d2llm.index.searching import Found, Searching
from d2llm.index.snapshot import Snapshot
from d2llm.index.staged import search_candidates
from d2llm_kernels import IEM

MODES = ("hybrid", "iem", "bm25", "cosine")
CHANNELS = ("bm25", "cosine", "surrogate")
#: Share of the exact best that a search promises, unless it is told another.
RECALL = 0.99
# With more candidates than the passages divided by this, it is faster to score every passage.
_WORTH = 8


@dataclass(frozen=True)
class Asked:
    """Arguments of ``Index.search``, which says what they mean; ``task`` is a number."""

    k: int
    task: int
    mode: str
    channels: Sequence[str]
    candidates: int
    recall: float | None
    filters: Filters | None
    given: Sequence[Sequence[str]] | None

    @property
    def wanted(self) -> float:
        """The share of the exact best to find."""
        return RECALL if self.recall is None else self.recall

    def check(self, snapshot: Snapshot, queries: int) -> None:
        """Check them against each other, the number of queries and the index.

        Raises:
            InputError: naming the argument.
        """
        check_count("k", self.k, 1)
        if not snapshot.size:
            raise InputError("k: expected an index with passages to search, got one that is empty")
        if self.mode not in MODES:
            raise InputError(f"mode: expected one of {MODES}, got {self.mode!r}")
        if isinstance(self.recall, bool) or not isinstance(self.wanted, (int, float)) or not 0 < self.wanted <= 1:
            raise InputError(f"recall: expected a number above 0, 1 at most, got {self.recall!r:.200}")
        if isinstance(self.channels, str) or not set(self.channels) <= set(CHANNELS):
            raise InputError(f"channels: expected some of {CHANNELS}, got {self.channels!r:.200}")
        for name, chosen in (("channels", self.channels or None), ("given", self.given)):
            if chosen is not None and self.mode not in ("hybrid", "iem"):
                raise InputError(f"{name}: expected none, since the mode is {self.mode!r}, got {chosen!r:.200}")
        if self.channels:
            check_count("candidates", self.candidates, self.k)
        if self.given is not None and (isinstance(self.given, str) or len(self.given) != queries):
            raise InputError(f"given: expected {queries} lists of ids, one a query, got {self.given!r:.200}")
        for each in self.given or ():
            check_ids(each)
        if "cosine" in (self.mode, *self.channels) and not snapshot.manifest.unit:
            raise InputError("mode: 'cosine' needs unit vectors, and this index was built with keep_vectors=False")
        if "surrogate" in self.channels and snapshot.surrogate is None:
            raise InputError("channels: 'surrogate' needs one, and this index has none; call fit_surrogate")
        if self.filters is not None:
            check_filters(self.filters, snapshot.manifest.fields)

    @torch.inference_mode()
    def find(
        self,
        snapshot: Snapshot,
        head: IEM,
        vectors: Tensor,
        texts: Sequence[str],
        weight: float,
        search: Callable[[Snapshot, IEM, int, Tensor], Searching] = Searching,
    ) -> tuple[list[Found], float | None]:
        """What is found for each query, and the share of the exact best that was promised, None for none.

        Args:
            vectors: queries (Nq, D), read by every mode but "bm25".
            texts: the same as texts, read by BM25.
            weight: what BM25 weighs in the hybrid mode.
            search: makes what searches a state by a branch among some positions.
        """
        among = snapshot.live if self.filters is None else passing(snapshot, self.filters)
        if not len(among):
            return [Found(np.zeros(0, np.float32), np.zeros(0, np.int64), {}) for _ in texts or vectors], 1.0
        searching = search(snapshot, head, self.task, among)
        k = min(self.k, len(searching.places))
        if self.mode == "bm25":
            return searching.bm25(texts, k), 1.0
        if self.mode == "cosine":
            return searching.cosine(vectors, k), 1.0
        channels, count, promise = self._way(snapshot, among, k, weight)
        if channels or self.given is not None:
            return self._staged(searching, snapshot, vectors, texts, channels, count, weight), promise
        if self.mode == "hybrid":
            return searching.hybrid(vectors, texts, k, weight), promise
        return searching.iem(vectors, k), promise

    def _way(self, snapshot: Snapshot, among: Tensor, k: int, weight: float) -> tuple[Sequence[str], int, float | None]:
        """Channels, none to score every passage; candidates of each; what that promises."""
        if self.channels or self.given is not None:
            return self.channels, self.candidates, None
        if snapshot.surrogate is None or self.wanted == 1:
            return (), 0, 1.0
        _, certified = snapshot.surrogate
        # What was certified for another branch or weight says nothing of this one.
        if certified.task != self.task or (self.mode == "hybrid" and certified.weight != weight):
            return (), 0, 1.0
        if self.filters is None:
            count = snapshot.candidates(self.mode, k, self.wanted)
        else:
            # To a certificate what does not pass a filter is deleted: what passes moves up, and needs fewer candidates.
            hidden = torch.ones_like(snapshot.deleted)
            hidden[among] = False
            count = certified.modes[self.mode].candidates(k, self.wanted, hidden)
        if count is None or count * _WORTH > len(among):
            return (), 0, 1.0
        return ("surrogate", "bm25") if self.mode == "hybrid" else ("surrogate",), count, self.wanted

    def _staged(
        self,
        searching: Searching,
        snapshot: Snapshot,
        vectors: Tensor,
        texts: Sequence[str],
        channels: Sequence[str],
        count: int,
        weight: float,
    ) -> list[Found]:
        chosen: dict[str, list[NDArray[np.int64]]] = {}
        if "cosine" in channels:
            chosen["cosine"] = list(searching.nearest(vectors, count).indices.numpy())
        if "surrogate" in channels and snapshot.surrogate is not None:
            covering, _ = snapshot.surrogate
            positions = searching.chosen(searching.projected(vectors), count, certified=not self.channels)
            chosen["surrogate"] = [searching.rows_at(each) for each in positions]
            # Passages that it does not cover, appended since, are all scored.
            since = np.arange(np.searchsorted(searching.places, covering.end), len(searching.places))
            chosen["appended"] = [since] * len(vectors)
        if self.given is not None:
            chosen["given"] = [_rows(searching, snapshot, names) for names in self.given]
        return search_candidates(
            searching,
            vectors,
            texts,
            self.k,
            chosen=chosen,
            bm25=count if "bm25" in channels else 0,
            weight=weight if self.mode == "hybrid" else None,
        )


def _rows(searching: Searching, snapshot: Snapshot, names: Sequence[str]) -> NDArray[np.int64]:
    """Rows of the passages that have these ids and may be found, in their order."""
    known = snapshot.find(names)
    positions = np.array([known[name] for name in names if name in known], np.int64)
    return searching.rows_at(positions[np.isin(positions, searching.places)])
