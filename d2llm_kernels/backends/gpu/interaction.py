"""The backward of the interaction as the Triton and the CUDA kernels share it: chunk by chunk.

Pairs are taken in chunks of at most ``_CHUNK``. For each chunk three matrix products follow one another, as
in the literal formulas, each in a kernel of its own that makes relu(a + b) again where it needs it:

1. *slopes*: pre = W h + c, and from it dpre = (dz w2 + dfeatures) [pre > 0], the one thing that is written, with
   the column sums that are the gradients of bias and out_weight;
2. *weights*: dW = dpreᵀ h;
3. *inputs*: dh = dpre W [h > 0], summed over queries for db and over passages for da while still in registers.

Partial sums go to workspaces, to which the next chunk adds its own, and are added up in a fixed order at the end. What
nobody wants is not made.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from d2llm_kernels.branch import Branch
from d2llm_kernels.tensors import unwanted

# Pairs whose dpre is held at a time: 256 MiB of half precision at F = 512.
_CHUNK = 1 << 18
#: Programs that keep a large GPU busy. A constant, so that sums are ordered alike everywhere.
PROGRAMS = 256


class Pairs(NamedTuple):
    """Every row of a (Nq, F) with every row of b (Np, F) or, where they are ``given``, row r with row r.

    Where the branches of several tasks are stacked there is one task for each row of a.
    """

    a: Tensor
    b: Tensor
    given: bool
    task: Tensor | None = None

    def size(self) -> int:
        """How many pairs there are."""
        return self.b.shape[0] if self.given else self.a.shape[0] * self.b.shape[0]


class Kernels(Protocol):
    """The three kernels, for the weights of one call.

    Each gets the parts of sums that it returned for the chunk before, None for the first, and adds to them. The first
    chunk is the largest.
    """

    def slopes(self, pairs: Pairs, dz: Tensor, dfeatures: Tensor | None, sums: Tensor | None) -> tuple[Tensor, Tensor]:
        """dpre, a row a pair, and parts (N, 2, [T,] F) of the gradients of bias and out_weight."""

    def weights(self, pairs: Pairs, dpre: Tensor, dweight: Tensor | None) -> Tensor:
        """Parts (N, [T,] F, F) of the gradient of weight."""

    def inputs(self, pairs: Pairs, dpre: Tensor, db: Tensor | None) -> tuple[Tensor | None, Tensor]:
        """Parts of da (Nq, N, F), of this chunk alone, and of db (N, Np, F); None and db (1, N, F) for given pairs."""


class _Gradients:
    """Gradients of one call, gathered chunk by chunk."""

    def __init__(self, kernels: Kernels, wanted: Sequence[bool]) -> None:
        self.kernels, self.wanted = kernels, wanted
        self.sums: Tensor | None = None
        self.dweight: Tensor | None = None

    def add(
        self, pairs: Pairs, dz: Tensor, dfeatures: Tensor | None = None, db: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Parts of the gradients of a and b; the weights' are kept."""
        dpre, self.sums = self.kernels.slopes(pairs, dz, dfeatures, self.sums)
        if self.wanted[1]:
            self.dweight = self.kernels.weights(pairs, dpre, self.dweight)
        return self.kernels.inputs(pairs, dpre, db) if self.wanted[0] else (None, None)

    def finish(self, dz: Tensor, branch: Branch) -> tuple[Tensor, ...]:
        """Gradients of the four tensors of the branch, in its shapes and dtypes."""
        if not self.wanted[1]:
            return unwanted(*branch)
        assert self.sums is not None and self.dweight is not None
        sums = _sum(self.sums, 0).view(2, -1, branch.out_weight.shape[1])
        # out_weight serves all tasks. That its sum is a tensor of its own is needed for one task too: results of an
        # operator must not share memory.
        made = (_sum(self.dweight, 0), sums[0], sums[1].sum(0), dz.sum(dtype=sums.dtype))
        return tuple(g.to(w.dtype).view(w.shape) for g, w in zip(made, branch, strict=True))


def scores_backward(
    kernels: Kernels,
    dz: Tensor,
    a: Tensor,
    b: Tensor,
    branch: Branch,
    wanted: Sequence[bool],
    task: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Gradients of ``iem_scores`` for a, b and the branch; rows of a, b and dz are contiguous."""
    if not dz.numel():
        return _zeros(a, b, branch, wanted)
    gradients, wide = _Gradients(kernels, wanted), min(b.shape[0], _CHUNK)
    tall = _CHUNK // wide
    da: Tensor | None = None
    db = []
    for j in range(0, b.shape[0], wide):
        columns, parts, rows_of_a = slice(j, j + wide), None, []
        for i in range(0, a.shape[0], tall):
            rows = slice(i, i + tall)
            pairs = Pairs(a[rows], b[columns], given=False, task=None if task is None else task[rows])
            part, parts = gradients.add(pairs, dz[rows, columns], db=parts)
            if part is not None:
                rows_of_a.append(_sum(part, 1))
        if parts is not None:
            da = _joined(rows_of_a) if da is None else da.add_(_joined(rows_of_a))
            db.append(_sum(parts, 0).to(b.dtype))
    inputs = unwanted(a, b) if da is None else (da.to(a.dtype), _joined(db))
    return *inputs, *gradients.finish(dz, branch)


def pairs_backward(
    kernels: Kernels,
    dz: Tensor,
    dfeatures: Tensor | None,
    a: Tensor,
    b: Tensor,
    branch: Branch,
    wanted: Sequence[bool],
    task: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Gradients of ``iem_pairs`` for a, b and the branch; rows of a and b are contiguous."""
    if not dz.numel():
        return _zeros(a, b, branch, wanted)
    dz = dz.contiguous()
    dfeatures = None if dfeatures is None else dfeatures.contiguous()
    gradients, found = _Gradients(kernels, wanted), []
    for start in range(0, a.shape[0], _CHUNK):
        rows = slice(start, start + _CHUNK)
        some = None if dfeatures is None else dfeatures[rows]
        pairs = Pairs(a[rows], b[rows], given=True, task=None if task is None else task[rows])
        _, part = gradients.add(pairs, dz[rows], some)
        if part is not None:
            found.append(part[0])
    inputs = unwanted(a, b)
    if found:
        # The gradient of a + b is that of both.
        both = _joined(found)
        inputs = both.to(a.dtype), both.to(b.dtype, copy=True)
    return *inputs, *gradients.finish(dz, branch)


def _sum(parts: Tensor, dim: int) -> Tensor:
    """The sum of parts, which costs nothing where there is but one."""
    return parts.squeeze(dim) if parts.shape[dim] == 1 else parts.sum(dim)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _zeros(a: Tensor, b: Tensor, branch: Branch, wanted: Sequence[bool]) -> tuple[Tensor, ...]:
    """The gradients of no pairs at all."""

    def of(tensors: Sequence[Tensor], given: bool) -> tuple[Tensor, ...]:
        if not given:
            return unwanted(*tensors)
        return tuple(torch.zeros_like(tensor, memory_format=torch.contiguous_format) for tensor in tensors)

    return *of((a, b), wanted[0]), *of(branch, wanted[1])
