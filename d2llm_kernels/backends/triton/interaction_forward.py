"""Interaction scores, forward: of all pairs, of given pairs with their features, or as keys to sort by.

One kernel for all three (algebra: docs/algebra.md, section 2). The epilogue works on the accumulators where they are:
bias, ReLU and the dot product with the last layer's weights, so that a score is all that leaves.
"""

import triton
import triton.language as tl
from torch import Tensor

from d2llm_kernels.backends.gpu.topk import topk
from d2llm_kernels.backends.triton import table
from d2llm_kernels.backends.triton.interaction import branch, holds, pair_rows, ready, row_tasks
from d2llm_kernels.backends.triton.language import below, relu, store
from d2llm_kernels.branch import Branch
from d2llm_kernels.tensors import accumulate_dtype, promotion


@triton.jit(
    do_not_specialize=("count", "passages", "first_passage", "keys_stride"),
    do_not_specialize_on_alignment=("task", "keys"),
)
def scores_kernel(
    a,
    b,
    weight,
    bias,
    out_weight,
    out_bias,
    task,
    z,
    features,
    keys,
    count,
    passages,
    first_passage,
    a_stride,
    b_stride,
    weight_stride,
    keys_stride,
    WIDTH: tl.constexpr,
    DTYPE: tl.constexpr,
    SUM: tl.constexpr,
    PRECISION: tl.constexpr,
    TASKS: tl.constexpr,
    PAIRS: tl.constexpr,
    FEATURES: tl.constexpr,
    KEYS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """z (pairs,) in SUM; with FEATURES also features (pairs, F); with KEYS, instead of z, keys (Nq, ...) int64.

    With TASKS branches, each an axis of the grid, a pair's is that of its task (Nq,), or for PAIRS (pairs,).
    """
    pairs = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    kept = pairs < count
    if TASKS > 0:
        number = tl.program_id(1)
        own = row_tasks(task, pairs, count, passages, TASKS, PAIRS)
        if not holds(own, number):
            return
        kept = kept & (own == number)
        weight += number.to(tl.int64) * WIDTH * WIDTH
        bias += number * WIDTH
    left, right = pair_rows(a, b, pairs, count, passages, a_stride, b_stride, PAIRS)
    scores = tl.zeros((BLOCK_M,), SUM)
    for first in range(0, WIDTH, BLOCK_N):
        pre = branch(
            left,
            right,
            first,
            weight,
            bias,
            weight_stride,
            WIDTH,
            DTYPE,
            SUM,
            PRECISION,
            BLOCK_M,
            BLOCK_N,
            BLOCK_K,
        )
        value = relu(pre)
        n = first + tl.arange(0, BLOCK_N)
        known = below(n, WIDTH, BLOCK_N)
        if FEATURES:
            store(features + pairs[:, None] * WIDTH + n[None, :], value, kept[:, None] & known[None, :])
        scores += tl.sum(value * tl.load(out_weight + n, mask=known, other=0).to(SUM)[None, :], 1)
    scores += tl.load(out_bias).to(SUM)
    if KEYS:
        target = keys + pairs // passages * keys_stride + pairs % passages
        tl.store(target, _key(scores, first_passage + pairs % passages), mask=kept)
    else:
        tl.store(z + pairs, scores, mask=kept)


@triton.jit
def _key(scores, passage):
    """Integers that sort as (score, lower passage first) do: the score's bits made monotone, then 2³² - 1 - passage."""
    scores = tl.where(scores == scores, scores, float("-inf"))
    # Both zeros are one score.
    bits = tl.where(scores == 0, 0.0, scores).to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(tl.int64) << 32) + (0xFFFFFFFF - passage)


def iem_scores(a: Tensor, b: Tensor, branch: Branch, task: Tensor | None) -> Tensor:
    """Forward of ``functional.iem_scores``: (Nq, F), (Np, F) -> (Nq, Np)."""
    z = a.new_empty(a.shape[0], b.shape[0], dtype=accumulate_dtype(a.dtype, b.dtype, branch.weight.dtype))
    _launch(a, b, branch, task, z.numel(), b.shape[0], z=z)
    return z


def iem_pairs(
    a: Tensor, b: Tensor, branch: Branch, task: Tensor | None, return_features: bool
) -> tuple[Tensor, Tensor]:
    """Forward of ``functional.iem_pairs`` on rows: (N, F), (N, F) -> z (N,), features (N, F) or (0, F)."""
    dtype = promotion(a, b, branch.weight)
    z = a.new_empty(a.shape[0], dtype=accumulate_dtype(dtype))
    features = a.new_empty(a.shape[0] if return_features else 0, a.shape[1], dtype=dtype)
    _launch(a, b, branch, task, a.shape[0], 1, z=z, features=features, PAIRS=True, FEATURES=return_features)
    return z, features


def iem_topk(a: Tensor, b: Tensor, branch: Branch, task: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    """Forward of ``functional.iem_topk``."""

    def score(part: Tensor, keys: Tensor, first: int) -> None:
        _launch(a, part, branch, task, keys.numel(), part.shape[0], keys=keys, first_passage=first, KEYS=True)

    return topk(a, b, k, score)


def _launch(
    a: Tensor,
    b: Tensor,
    branch: Branch,
    task: Tensor | None,
    count: int,
    passages: int,
    z: Tensor | None = None,
    features: Tensor | None = None,
    keys: Tensor | None = None,
    first_passage: int = 0,
    PAIRS: bool = False,
    FEATURES: bool = False,
    KEYS: bool = False,
) -> None:
    arch, dtype, width = table.architecture(a.device), promotion(a, b, branch.weight), a.shape[1]
    tiles = table.tiles("features" if FEATURES else "scores", arch, dtype, F=width)
    a, b, branch, task = ready(a, b, branch, task)
    tasks = 0 if task is None else branch.weight.shape[0]
    if count:
        scores_kernel[(triton.cdiv(count, tiles["BLOCK_M"]), max(1, tasks))](
            a, b, *branch, task, z, features, keys, count, passages, first_passage,
            a.stride(0), b.stride(0), branch.weight.stride(-2), 0 if keys is None else keys.stride(0),
            WIDTH=width, TASKS=tasks, PAIRS=PAIRS, FEATURES=FEATURES, KEYS=KEYS,
            **table.elements(arch, dtype), **tiles,
        )  # fmt: skip
