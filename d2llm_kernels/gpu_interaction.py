"""What the Triton and the CUDA kernels of the interaction share: chunks of the backward, and the top-k of keys.

The backward takes pairs in chunks of at most ``_CHUNK``. For each chunk three matrix products follow one another, as
in the literal formulas, each in a kernel of its own that makes relu(a + b) again where it needs it:

1. *slopes*: pre = W h + c, and from it dpre = (dz w2 + dfeatures) [pre > 0], the one thing that is written, with
   the column sums that are the gradients of bias and out_weight;
2. *inputs*: dh = dpre W [h > 0], summed over queries for db and over passages for da while still in registers;
3. *weights*: dW = dpreᵀ h.

Partial sums go to workspaces and are added in a fixed order.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from d2llm_kernels.checks import accumulate_dtype
from d2llm_kernels.iem_folded import Branch
from d2llm_kernels.promotion import promotion

# Pairs whose dpre is held at a time: 256 MiB of half precision at F = 512.
_CHUNK = 1 << 18
# Keys of a block of passages: 64 MiB.
_TOPK_BYTES = 1 << 26
#: Programs that keep a large GPU busy. A constant, so that sums are ordered alike everywhere.
PROGRAMS = 256


class Kernels(Protocol):
    """The three kernels, for the weights of one call."""

    parts: int
    """How many partial sums of dW there are."""

    def slopes(
        self, a: Tensor, b: Tensor, dz: Tensor, dfeatures: Tensor | None, dpre: Tensor, pairs: bool
    ) -> tuple[Tensor, Tensor]:
        """Write dpre (pairs, F); return parts (N, F) of the gradients of bias and out_weight."""

    def weights(self, a: Tensor, b: Tensor, dpre: Tensor, dweight: Tensor, pairs: bool) -> None:
        """Add to dweight (parts, F, F)."""

    def inputs(self, a: Tensor, b: Tensor, dpre: Tensor, pairs: bool) -> tuple[Tensor | None, Tensor]:
        """Parts of da (Nq, N, F), or None for given pairs, and of db (N, Np, F)."""


class _Gradients:
    """Gradients of one call, gathered chunk by chunk."""

    def __init__(self, kernels: Kernels, a: Tensor, b: Tensor, branch: Branch) -> None:
        self.kernels, self.branch = kernels, branch
        self.dtype = promotion(a, b, branch.weight)
        self.wide = accumulate_dtype(self.dtype)
        self.width = branch.weight.shape[0]
        self.dweight = a.new_zeros(kernels.parts, self.width, self.width, dtype=self.wide)
        self.dbias = a.new_zeros(self.width, dtype=self.wide)
        self.dout_weight = torch.zeros_like(self.dbias)

    def add(self, a: Tensor, b: Tensor, dz: Tensor, dfeatures: Tensor | None, pairs: bool) -> tuple[Tensor, Tensor]:
        """Gradients of one chunk, of a and of b; the weights' are added up."""
        dpre = a.new_empty(dz.numel(), self.width, dtype=self.dtype)
        dbias, dout_weight = self.kernels.slopes(a, b, dz, dfeatures, dpre, pairs)
        self.dbias += dbias.sum(0)
        self.dout_weight += dout_weight.sum(0)
        self.kernels.weights(a, b, dpre, self.dweight, pairs)
        da, db = self.kernels.inputs(a, b, dpre, pairs)
        db = db.sum(0)
        return db if da is None else da.sum(1), db

    def finish(self, dz: Tensor) -> tuple[Tensor, ...]:
        """Gradients of the four tensors of the branch, in its dtypes."""
        sums = (self.dweight.sum(0), self.dbias, self.dout_weight.view(1, -1), dz.sum(dtype=self.wide).view(1))
        return tuple(g.to(w.dtype) for g, w in zip(sums, self.branch, strict=True))


def scores_backward(kernels: Kernels, dz: Tensor, a: Tensor, b: Tensor, branch: Branch) -> tuple[Tensor, ...]:
    """Gradients of ``iem_scores`` for a, b and the branch; rows of a, b and dz are contiguous."""
    gradients = _Gradients(kernels, a, b, branch)
    da, db = a.new_zeros(a.shape, dtype=gradients.wide), b.new_zeros(b.shape, dtype=gradients.wide)
    if dz.numel():
        wide = min(b.shape[0], _CHUNK)
        tall = max(1, _CHUNK // wide)
        for j in range(0, b.shape[0], wide):
            for i in range(0, a.shape[0], tall):
                rows, columns = slice(i, i + tall), slice(j, j + wide)
                part_a, part_b = gradients.add(a[rows], b[columns], dz[rows, columns], None, pairs=False)
                da[rows] += part_a
                db[columns] += part_b
    return da.to(a.dtype), db.to(b.dtype), *gradients.finish(dz)


def pairs_backward(
    kernels: Kernels, dz: Tensor, dfeatures: Tensor | None, a: Tensor, b: Tensor, branch: Branch
) -> tuple[Tensor, ...]:
    """Gradients of ``iem_pairs`` for a, b and the branch; rows of a and b are contiguous."""
    dz = dz.contiguous()
    dfeatures = None if dfeatures is None else dfeatures.contiguous()
    gradients = _Gradients(kernels, a, b, branch)
    da, db = torch.empty_like(a), torch.empty_like(b)
    for start in range(0, a.shape[0], _CHUNK):
        rows = slice(start, start + _CHUNK)
        some = None if dfeatures is None else dfeatures[rows]
        da[rows], db[rows] = gradients.add(a[rows], b[rows], dz[rows], some, pairs=True)
    return da, db, *gradients.finish(dz)


def topk(a: Tensor, b: Tensor, k: int, score: Callable[[Tensor, Tensor, int], None]) -> tuple[Tensor, Tensor]:
    """Running best k of each query over blocks of passages, values and indices (Nq, k).

    Score and index are one integer, so that no two are equal and any exact selection gives the one right answer.

    Args:
        score: writes the keys of the queries with a block of passages: (passages, keys, number of the first passage).
    """
    queries, passages = a.shape[0], b.shape[0]
    block = max(4 * k, _TOPK_BYTES // (8 * max(1, queries)))
    best = torch.empty(queries, 0, dtype=torch.int64, device=a.device)
    for start in range(0, passages if queries else 0, block):
        part = b[start : start + block]
        keys = best.new_empty(queries, best.shape[1] + part.shape[0])
        keys[:, : best.shape[1]] = best
        score(part, keys[:, best.shape[1] :], start)
        best = keys.topk(min(k, keys.shape[1]), sorted=True).values
    best = best if queries else best.new_empty(0, k)
    ordered = (best >> 32).int()
    values = (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).view(torch.float32)
    return values, 0xFFFFFFFF - (best & 0xFFFFFFFF)
