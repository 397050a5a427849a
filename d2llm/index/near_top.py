"""What lies near the top of queries: what a surrogate goes on to learn from, and what chooses among its maps."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from d2llm.index.searching import Searching
from d2llm.index.snapshot import Snapshot
from d2llm.index.surrogate import Maps, Near
from d2llm_kernels import IEM
from d2llm_kernels.rough import inner

# Passages that maps put first of a query, to learn from and to choose by.
_NEAR, _DEEPER = 512, 4096
# Maps are chosen by how deep so many best passages of each query lie, all but a hundredth of them.
_BEST, _DEEP = 10, 0.99
# Passages mapped at a time: 64 MB.
_BLOCK = 1 << 15


class NearTop:
    """Some passages of an index, among which maps and the module itself are asked.

    Args:
        snapshot: the index.
        head: the module.
        task: its branch.
        places: of the passages, ascending.
    """

    def __init__(self, snapshot: Snapshot, head: IEM, task: int, places: Tensor) -> None:
        self._snapshot, self._places = snapshot, places
        self._searching = Searching(snapshot, head, task, places)

    def of(self, maps: Maps, a: Tensor, count: int = _NEAR) -> Near:
        """What maps put first of projected queries (Nq, F), so many of each, with the module's scores."""
        found = inner.topk(maps.queries(a), self._rows(maps), min(count, len(self._places)))[1]
        scores = [torch.from_numpy(self._searching.rough_at(*each)) for each in zip(a, found.numpy(), strict=True)]
        return Near(self._places[found], torch.stack(scores), self._snapshot.gather)

    def choose(self, made: Sequence[Maps], a: Tensor) -> Maps:
        """The maps by which the best passages of projected queries (Nq, F) lie least deep; the last of equal ones.

        The best are those of what any of the maps put first.
        """
        found = [self.of(maps, a, _DEEPER) for maps in made]
        places, scores = (
            torch.cat(each, 1) for each in zip(*((near.places, near.scores) for near in found), strict=True)
        )
        best = [
            np.searchsorted(self._places.numpy(), _best(*each))
            for each in zip(places.numpy(), scores.numpy(), strict=True)
        ]
        return min(reversed(made), key=lambda maps: self._depth(maps, a, best))

    def _depth(self, maps: Maps, a: Tensor, best: Sequence[NDArray[np.int64]]) -> float:
        rows = self._rows(maps)
        products = (torch.cat([inner.products(query[None], part) for part in rows], 1)[0] for query in maps.queries(a))
        places = [depths(each.numpy(), chosen) for each, chosen in zip(products, best, strict=True)]
        return float(np.quantile(np.concatenate(places), _DEEP))

    def _rows(self, maps: Maps) -> list[Tensor]:
        return [maps.passages(self._snapshot.gather(some)) for some in self._places.split(_BLOCK)]


def depths(scores: NDArray[np.float32 | np.int32], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many passages must be chosen by their scores for each row to be among them, however equals are ordered."""
    return len(scores) - np.searchsorted(np.sort(scores), scores[rows], side="left")


def _best(places: NDArray[np.int64], scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """The places of the best scores, each once."""
    once, first = np.unique(places, return_index=True)
    return once[np.argsort(-scores[first], kind="stable")[:_BEST]]
