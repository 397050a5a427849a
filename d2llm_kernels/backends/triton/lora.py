"""LoRA beside a linear layer: one product that carries its adapter along (algebra: docs/algebra.md, section 7).

A program makes a tile of y. While it walks along K it multiplies each block of x with the layer's weight and, once
more, with the few rows of a; what that gives stays in registers until the tile is done, and is then taken through b. So
x is read once and y is written once. The gradient of x is the same product with the factors transposed.
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from d2llm_kernels.backends.folded import lora as folded
from d2llm_kernels.backends.triton import table
from d2llm_kernels.backends.triton.language import below, dot, operand, store

# Tiles of rows that share their columns' weights while those are in the L2 cache.
_GROUP = tl.constexpr(8)


@triton.jit(do_not_specialize=("rows",))
def lora_kernel(
    x,
    dropped,
    weight,
    bias,
    a,
    b,
    y,
    inner,
    scaling,
    rows,
    x_stride,
    dropped_stride,
    weight_n,
    weight_k,
    a_r,
    a_k,
    b_n,
    b_r,
    DEPTH: tl.constexpr,
    WIDTH: tl.constexpr,
    RANK: tl.constexpr,
    DTYPE: tl.constexpr,
    SUM: tl.constexpr,
    PRECISION: tl.constexpr,
    BIAS: tl.constexpr,
    DROPPED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """y (rows, WIDTH) and inner (rows, RANK) of x (rows, DEPTH), or for inner of dropped."""
    m, first = _tile(rows, WIDTH, BLOCK_M, BLOCK_N)
    n, r = first + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_R)
    known_n, known_r, kept = below(n, WIDTH, BLOCK_N), below(r, RANK, BLOCK_R), m < rows
    # The last row stands for those behind it: no load needs a mask for its rows.
    place = tl.minimum(m, rows - 1).to(tl.int64)
    total, low = tl.zeros((BLOCK_M, BLOCK_N), SUM), tl.zeros((BLOCK_M, BLOCK_R), SUM)
    for start in range(0, DEPTH, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        known = below(k, DEPTH, BLOCK_K)
        tokens = operand(tl.load(x + place[:, None] * x_stride + k[None, :], mask=known[None, :], other=0), DTYPE)
        inside = known[:, None] & known_n[None, :]
        w = tl.load(weight + n[None, :] * weight_n + k[:, None] * weight_k, mask=inside, other=0)
        total = dot(tokens, operand(w, DTYPE), total, PRECISION)
        if DROPPED:
            given = dropped + place[:, None] * dropped_stride + k[None, :]
            tokens = operand(tl.load(given, mask=known[None, :], other=0), DTYPE)
        inside = known[:, None] & known_r[None, :]
        factor = tl.load(a + r[None, :] * a_r + k[:, None] * a_k, mask=inside, other=0)
        low = dot(tokens, operand(factor, DTYPE), low, PRECISION)
    if first == 0:
        store(inner + m.to(tl.int64)[:, None] * RANK + r[None, :], low, kept[:, None] & known_r[None, :])
    inside = known_r[:, None] & known_n[None, :]
    factor = tl.load(b + n[None, :] * b_n + r[:, None] * b_r, mask=inside, other=0)
    adapter = dot(operand(low, DTYPE), operand(factor, DTYPE), tl.zeros((BLOCK_M, BLOCK_N), SUM), PRECISION)
    total += scaling * adapter
    if BIAS:
        total += tl.load(bias + n, mask=known_n, other=0).to(SUM)[None, :]
    store(y + m.to(tl.int64)[:, None] * WIDTH + n[None, :], total, kept[:, None] & known_n[None, :])


@triton.jit
def _tile(rows, WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Rows and first column of this program's tile: down a few tiles of rows, then on to the next columns."""
    number, columns = tl.program_id(0), (WIDTH + BLOCK_N - 1) // BLOCK_N
    start = number // (_GROUP * columns) * _GROUP
    height = tl.minimum(tl.cdiv(rows, BLOCK_M) - start, _GROUP)
    inside = number % (_GROUP * columns)
    return (start + inside % height) * BLOCK_M + tl.arange(0, BLOCK_M), inside // height * BLOCK_N


def lora_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float, dropped: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Forward of ``functional.lora_linear`` on rows: y (T, N) and the inner values (T, R)."""
    x = _rows(x)
    y, inner = x.new_empty(x.shape[0], weight.shape[0]), x.new_empty(x.shape[0], a.shape[0])
    if not x.shape[0] or not weight.shape[0]:
        return y, inner
    arch, dtype = table.architecture(x.device), x.dtype
    tiles = table.tiles("lora", arch, dtype, D=x.shape[1], R=a.shape[0])
    second = x if dropped is None else _rows(dropped)
    grid = (triton.cdiv(x.shape[0], tiles["BLOCK_M"]) * triton.cdiv(weight.shape[0], tiles["BLOCK_N"]),)
    lora_kernel[grid](
        x,
        second,
        weight,
        bias if bias is None else bias.contiguous(),
        a,
        b,
        y,
        inner,
        scaling,
        x.shape[0],
        x.stride(0),
        second.stride(0),
        *weight.stride(),
        *a.stride(),
        *b.stride(),
        DEPTH=x.shape[1],
        WIDTH=weight.shape[0],
        RANK=a.shape[0],
        BIAS=bias is not None,
        DROPPED=dropped is not None,
        **table.elements(arch, dtype),
        **tiles,
    )
    return y, inner


def lora_linear_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    a: Tensor,
    b: Tensor,
    inner: Tensor,
    scaling: float,
    dropped: Tensor | None,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight, a, b and dropped, each empty, (0,), unless it is ``wanted``.

    dx is the forward product with factors transposed, and its inner values are those that da wants. The gradients of
    the factors are thin products over all rows, and with dropout dx has no adapter: torch makes those.
    """
    want_x, want_weight, want_a, want_b, _ = wanted
    if dropped is not None or not want_x:
        return folded.lora_linear_backward(dy, x, weight, a, b, inner, scaling, dropped, wanted)
    dx, back = lora_linear(dy, weight.T, None, b.T, a.T, scaling, None)
    rest = (False, want_weight, False, want_b, False)
    _, dweight, da, db, none = folded.lora_linear_backward(dy, x, weight, a, b, inner, scaling, None, rest)
    return dx, dweight, (back.T @ x).mul_(scaling) if want_a else da, db, none


def _rows(x: Tensor) -> Tensor:
    """x as the kernel reads it, its rows contiguous."""
    return x if x.stride(-1) == 1 else x.contiguous()
