"""An index in parts of some segments each, and a search whose looks at every passage are taken part by part.

A search runs as over the whole, but for what looks at every passage: the module's rounded scores, cosines, the
surrogate's products. Each part takes these over its own segments, by the same code and segment by segment, and what
the parts keep is put together in their order (``Best.add``), which is associative. What is kept is ranked by the whole,
which also asks the surrogate's engine, where it has one: that, as its certificates, is of all passages together.
So ids, scores, order and ties are those of a search without parts, bit for bit on one kind of machine.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from d2llm.index.filters import Filters, passing
from d2llm.index.manifest import Manifest
from d2llm.index.searching import Scores, Searching
from d2llm.index.snapshot import Snapshot
from d2llm_kernels import IEM
from d2llm_kernels.rough.candidates import Best


def shared_out(starts: Tensor, count: int) -> list[slice]:
    """Segments in a row for each part, of about as many passages; fewer parts where there are fewer segments.

    Args:
        starts: (S + 1,) position at which each segment starts, then the end.
        count: how many parts.
    """
    ideal = torch.arange(1, count) * int(starts[-1]) / count
    cuts = sorted({0, len(starts) - 1, *torch.searchsorted(starts, ideal).tolist()})
    return [slice(low, high) for low, high in pairwise(cuts)]


class Part:
    """Some segments of an index, mapped.

    Args:
        path: folder of the index.
        manifest: its state.
        head: its interaction module.
        segments: of the state, those of this part.

    Raises:
        MissingError, FormatError: as ``Index.open``.
    """

    def __init__(self, path: Path, manifest: Manifest, head: IEM, segments: slice) -> None:
        self._snapshot, self._head = Snapshot(path, manifest, part=segments), head

    @torch.inference_mode()
    def look(self, method: str, task: int, filters: Filters | None, *arguments: Any) -> Any:
        """What a method of ``Searching`` finds here; rows and positions count from the part's first."""
        among = self._snapshot.live if filters is None else passing(self._snapshot, filters)
        return getattr(Searching(self._snapshot, self._head, task, among), method)(*arguments)


class InParts(Searching):
    """A search of the whole that has the parts look.

    Args:
        snapshot, head, task, among: as for ``Searching``.
        ask: what each part finds by a method, in their order, given its name and arguments.
        starts: position (P,) at which each part starts.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        head: IEM,
        task: int,
        among: Tensor,
        ask: Callable[..., list[Any]],
        starts: Tensor,
    ) -> None:
        super().__init__(snapshot, head, task, among)
        self._ask, self._starts, self._firsts = ask, starts, torch.searchsorted(among, starts)

    def rough(self, a: Tensor) -> Scores:
        return np.concatenate(self._ask("rough", a.cpu()), axis=1)

    def first_look(self, a: Tensor, k: int) -> Best:
        found = self._ask("first_look", a.cpu(), k)
        return _joined(found, self._firsts, found[0].k)

    def nearest(self, vectors: Tensor, count: int) -> Best:
        return _joined(self._ask("nearest", vectors.cpu(), count), self._firsts, count)

    def scanned(self, a: Tensor, count: int) -> Best:
        return _joined(self._ask("scanned", a.cpu(), count), self._starts, count)


def _joined(found: Sequence[Best], firsts: Tensor, k: int) -> Best:
    """The k best that parts found; of each part, the number of its first passage."""
    best = Best(k, found[0].values[:, :0], found[0].indices[:, :0])
    for each, first in zip(found, firsts.tolist(), strict=True):
        best.add(each.values, each.indices + first)
    return best
