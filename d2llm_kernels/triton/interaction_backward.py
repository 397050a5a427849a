"""Interaction scores, backward, in tiles: no tensor of the size of all pairs times F, no float atomic.

The three kernels of ``gpu_interaction``: slopes, inputs and weights.
"""

import triton
import triton.language as tl
from torch import Tensor

from d2llm_kernels import gpu_interaction
from d2llm_kernels.checks import accumulate_dtype
from d2llm_kernels.iem_folded import Branch
from d2llm_kernels.promotion import promotion
from d2llm_kernels.triton import table
from d2llm_kernels.triton.interaction import branch, hidden, pair_rows
from d2llm_kernels.triton.language import below, dot, operand, relu, store


@triton.jit
def slopes_kernel(
    a,
    b,
    weight,
    bias,
    out_weight,
    dz,
    dfeatures,
    dpre,
    dbias,
    dout_weight,
    count,
    passages,
    a_stride,
    b_stride,
    weight_stride,
    dz_stride,
    WIDTH: tl.constexpr,
    DTYPE: tl.constexpr,
    SUM: tl.constexpr,
    PRECISION: tl.constexpr,
    PAIRS: tl.constexpr,
    FEATURES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """dpre (pairs, F) as an operand; column sums of the tile, (tiles, F) each in SUM."""
    tile = tl.program_id(0).to(tl.int64)
    pairs = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = pairs < count
    left, right = pair_rows(a, b, pairs, passages, a_stride, b_stride, PAIRS)
    first = tl.program_id(1) * BLOCK_N
    pre = branch(
        left, right, inside, first, weight, bias, weight_stride, WIDTH, DTYPE, SUM, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K
    )
    n = first + tl.arange(0, BLOCK_N)
    known = below(n, WIDTH, BLOCK_N)
    written = inside[:, None] & known[None, :]
    place = pairs if PAIRS else pairs // passages * dz_stride + pairs % passages
    slope = tl.load(dz + place, mask=inside, other=0).to(SUM)
    tl.store(dout_weight + tile * WIDTH + n, tl.sum(slope[:, None] * relu(pre), 0), mask=known)
    gradient = slope[:, None] * tl.load(out_weight + n, mask=known, other=0).to(SUM)[None, :]
    if FEATURES:
        gradient += tl.load(dfeatures + pairs[:, None] * WIDTH + n[None, :], mask=written, other=0).to(SUM)
    gradient = tl.where((pre > 0) & inside[:, None], gradient, 0.0)
    tl.store(dbias + tile * WIDTH + n, tl.sum(gradient, 0), mask=known)
    store(dpre + pairs[:, None] * WIDTH + n[None, :], gradient, written)


@triton.jit
def inputs_kernel(
    a,
    b,
    weight,
    dpre,
    da,
    db,
    queries,
    passages,
    share,
    a_stride,
    b_stride,
    weight_stride,
    WIDTH: tl.constexpr,
    DTYPE: tl.constexpr,
    SUM: tl.constexpr,
    PRECISION: tl.constexpr,
    PAIRS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A tile of passages and a block of columns against ``share`` queries, one after the other.

    da (queries, tiles, F) and db (programs of axis 2, passages, F) are parts of sums, in SUM. For given PAIRS queries
    is 1 and db (1, pairs, F) is the gradient of a + b itself.
    """
    tile, group = tl.program_id(0).to(tl.int64), tl.program_id(2).to(tl.int64)
    j = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = j < passages
    known_k = below(k, WIDTH, BLOCK_N)
    written = inside[:, None] & known_k[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_N), SUM)
    STEPS: tl.constexpr = (WIDTH + BLOCK_K - 1) // BLOCK_K
    dh = tl.zeros((BLOCK_M, BLOCK_N), SUM)
    start = group * share
    # One loop over queries and, inside each, over n: the loads of the next query start before this one is done.
    for turn in range(0, tl.maximum(tl.minimum(share, queries - start), 0) * STEPS):
        i, step = start + turn // STEPS, turn % STEPS
        n = step * BLOCK_K + tl.arange(0, BLOCK_K)
        rows = dpre + (i * passages + j)[:, None] * WIDTH
        known_n = below(n, WIDTH, BLOCK_K)
        slope = tl.load(rows + n[None, :], mask=inside[:, None] & known_n[None, :], other=0)
        known = known_n[:, None] & known_k[None, :]
        w = tl.load(weight + n[:, None] * weight_stride + k[None, :], mask=known, other=0)
        dh = dot(operand(slope, DTYPE), operand(w, DTYPE), dh, PRECISION)
        if step == STEPS - 1:
            # b is read again for each query: from the cache it costs less than the registers to keep it in.
            right = operand(tl.load(b + j[:, None] * b_stride + k[None, :], mask=written, other=0), DTYPE)
            if PAIRS:
                left = tl.load(a + j[:, None] * a_stride + k[None, :], mask=written, other=0)
            else:
                left = tl.load(a + i * a_stride + k, mask=known_k, other=0)[None, :]
            dh = tl.where(operand(left, DTYPE) + right > 0, dh, 0.0)
            if not PAIRS:
                tl.store(da + (i * tl.num_programs(0) + tile) * WIDTH + k, tl.sum(dh, 0), mask=known_k)
            total += dh
            dh = tl.zeros((BLOCK_M, BLOCK_N), SUM)
    tl.store(db + (group * passages + j)[:, None] * WIDTH + k[None, :], total, mask=written)


@triton.jit
def weights_kernel(
    a,
    b,
    dpre,
    dweight,
    count,
    passages,
    share,
    a_stride,
    b_stride,
    WIDTH: tl.constexpr,
    DTYPE: tl.constexpr,
    SUM: tl.constexpr,
    PRECISION: tl.constexpr,
    PAIRS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """dpreᵀ h of ``share`` pairs, added to dweight (programs of axis 2, F, F) in SUM; a tile is (BLOCK_M, BLOCK_N)."""
    n = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    group = tl.program_id(2).to(tl.int64)
    target = dweight + (group * WIDTH + n)[:, None] * WIDTH + k[None, :]
    known_n, known_k = below(n, WIDTH, BLOCK_M), below(k, WIDTH, BLOCK_N)
    written = known_n[:, None] & known_k[None, :]
    total = tl.load(target, mask=written, other=0)
    for start in range(group * share, tl.minimum((group + 1) * share, count), BLOCK_K):
        pairs = start + tl.arange(0, BLOCK_K)
        inside = pairs < count
        left, right = pair_rows(a, b, pairs, passages, a_stride, b_stride, PAIRS)
        h = hidden(left, right, inside, k, known_k, DTYPE)
        known = inside[:, None] & known_n[None, :]
        slope = tl.load(dpre + pairs[:, None] * WIDTH + n[None, :], mask=known, other=0)
        total = dot(tl.trans(operand(slope, DTYPE)), h, total, PRECISION)
    tl.store(target, total, mask=written)


class _Kernels:
    """The kernels with the weights and tiles of one call."""

    def __init__(self, a: Tensor, b: Tensor, branch: Branch) -> None:
        self.arch = table.architecture(a.device)
        self.dtype = promotion(a, b, branch.weight)
        self.elements = table.elements(self.arch, self.dtype)
        self.wide = accumulate_dtype(self.dtype)
        self.width = branch.weight.shape[0]
        self.branch = branch
        self.weight = branch.weight if branch.weight.stride(-1) == 1 else branch.weight.contiguous()
        tiles = self.tiles("weights")
        outputs = triton.cdiv(self.width, tiles["BLOCK_M"]) * triton.cdiv(self.width, tiles["BLOCK_N"])
        self.parts = max(1, gpu_interaction.PROGRAMS // outputs)

    def tiles(self, kernel: str) -> table.Tiles:
        return table.tiles(kernel, self.arch, self.dtype, F=self.width)

    def slopes(
        self, a: Tensor, b: Tensor, dz: Tensor, dfeatures: Tensor | None, dpre: Tensor, pairs: bool
    ) -> tuple[Tensor, Tensor]:
        tiles = self.tiles("slopes" if dfeatures is None else "slopes_features")
        tall, wide = triton.cdiv(dz.numel(), tiles["BLOCK_M"]), triton.cdiv(self.width, tiles["BLOCK_N"])
        dbias, dout_weight = dpre.new_empty(2, tall, self.width, dtype=self.wide)
        slopes_kernel[(tall, wide)](
            a, b, self.weight, self.branch.bias, self.branch.out_weight.view(-1), dz, dfeatures, dpre, dbias,
            dout_weight, dz.numel(), b.shape[0], a.stride(0), b.stride(0), self.weight.stride(0), dz.stride(0),
            WIDTH=self.width, PAIRS=pairs, FEATURES=dfeatures is not None, **self.elements, **tiles,
        )  # fmt: skip
        return dbias, dout_weight

    def weights(self, a: Tensor, b: Tensor, dpre: Tensor, dweight: Tensor, pairs: bool) -> None:
        tiles = self.tiles("weights")
        share = triton.cdiv(triton.cdiv(dpre.shape[0], self.parts), tiles["BLOCK_K"]) * tiles["BLOCK_K"]
        grid = (triton.cdiv(self.width, tiles["BLOCK_M"]), triton.cdiv(self.width, tiles["BLOCK_N"]), self.parts)
        weights_kernel[grid](
            a, b, dpre, dweight, dpre.shape[0], b.shape[0], share, a.stride(0), b.stride(0),
            WIDTH=self.width, PAIRS=pairs, **self.elements, **tiles,
        )  # fmt: skip

    def inputs(self, a: Tensor, b: Tensor, dpre: Tensor, pairs: bool) -> tuple[Tensor | None, Tensor]:
        passages, tiles = b.shape[0], self.tiles("inputs")
        tall, wide = triton.cdiv(passages, tiles["BLOCK_M"]), triton.cdiv(self.width, tiles["BLOCK_N"])
        queries = 1 if pairs else a.shape[0]
        groups = min(queries, triton.cdiv(gpu_interaction.PROGRAMS, tall * wide))
        share = triton.cdiv(queries, groups)
        groups = triton.cdiv(queries, share)
        da = None if pairs else dpre.new_empty(queries, tall, self.width, dtype=self.wide)
        db = dpre.new_empty(groups, passages, self.width, dtype=self.wide)
        inputs_kernel[(tall, wide, groups)](
            a, b, self.weight, dpre, da, db, queries, passages, share, a.stride(0), b.stride(0), self.weight.stride(0),
            WIDTH=self.width, PAIRS=pairs, **self.elements, **tiles,
        )  # fmt: skip
        return da, db


def iem_scores_backward(dz: Tensor, a: Tensor, b: Tensor, branch: Branch) -> tuple[Tensor, ...]:
    """Gradients of ``iem_scores`` with respect to a, b and the four tensors of the branch, in that order."""
    a, b, dz = (t if t.stride(-1) == 1 else t.contiguous() for t in (a, b, dz))
    return gpu_interaction.scores_backward(_Kernels(a, b, branch), dz, a, b, branch)


def iem_pairs_backward(
    dz: Tensor, dfeatures: Tensor | None, a: Tensor, b: Tensor, branch: Branch
) -> tuple[Tensor, ...]:
    """Gradients of ``iem_pairs`` with respect to a, b and the four tensors of the branch, in that order."""
    a, b = (t if t.stride(-1) == 1 else t.contiguous() for t in (a, b))
    return gpu_interaction.pairs_backward(_Kernels(a, b, branch), dz, dfeatures, a, b, branch)
