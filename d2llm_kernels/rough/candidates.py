"""From rough scores to exact ones: how many candidates to keep, the best so far, ranking candidates again."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from d2llm_kernels import functional, reference
from d2llm_kernels.branch import Branch
from d2llm_kernels.tensors import accumulate_dtype

# Elements of candidates that are scored again at a time: 16 MB in float32.
_BLOCK = 1 << 22


def candidates(k: int) -> int:
    """How many passages to keep by rough scores, if there are as many, so that the best k by exact ones are among them.

    Of trained scores 2 k in 8 bits held the best 100 of each query; the rest is margin.
    """
    return max(4 * k, k + 128)


@dataclass
class Best:
    """The k best passages of each query so far, while passages come in the order of their numbers.

    ``values`` and ``indices`` (Nq, k), fewer columns until k passages came; best first, the lower index first among
    equals.
    """

    k: int
    values: Tensor
    indices: Tensor

    @classmethod
    def of_none(cls, a: Tensor, k: int) -> "Best":
        """Before the first passage, for queries (Nq, F)."""
        values = a.new_empty(len(a), 0, dtype=accumulate_dtype(a.dtype))
        return cls(k, values, torch.empty_like(values, dtype=torch.int64))

    def add(self, values: Tensor, indices: Tensor) -> None:
        """Take part of the passages into account, of each query the best k, both (Nq, k) and ordered as above."""
        # What was kept has lower indices than what comes, so a stable sort keeps equals in order.
        values, indices = torch.cat([self.values, values], 1), torch.cat([self.indices, indices], 1)
        values, order = values.sort(dim=1, descending=True, stable=True)
        self.values, self.indices = values[:, : self.k], indices.gather(1, order)[:, : self.k]


def rerank(
    a: Tensor, branch: Branch, found: Tensor, gather: Callable[[Tensor], Tensor], k: int, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """The best k of each query's candidates, by exact scores.

    Args:
        a: (Nq, F) projected queries.
        found: (Nq, C) int64 indices of candidates, C at least k, on any device.
        gather: ascending indices (N,) on the device of ``found``, some of them equal -> their projected passages
            (N, F), floating.
        backend: as in ``functional.iem_pairs``, which scores.

    Returns:
        values (Nq, k), float32 or float64, and indices (Nq, k) on the device of ``found``, ordered as in
        ``functional.iem_topk``.
    """
    found = found.sort(1).values
    if not len(found):
        return a.new_empty(0, k, dtype=accumulate_dtype(a.dtype)), found[:, :k]
    step = max(1, _BLOCK // max(1, found.shape[1] * a.shape[1]))
    parts = []
    for start in range(0, len(found), step):
        some = found[start : start + step]
        order = some.flatten().argsort()
        rows = gather(some.flatten()[order]).to(a.device)[order.argsort().to(a.device)].view(*some.shape, -1)
        z = functional.iem_pairs(a[start : start + step, None], rows, *branch, backend=backend)
        assert isinstance(z, Tensor)
        parts.append(reference.topk(z, k))
    values, orders = (torch.cat(part) for part in zip(*parts, strict=True))
    return values, found.gather(1, orders.to(found.device))
