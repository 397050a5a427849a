"""Attention pooling, backward, without a float atomic (algebra: docs/algebra.md, section 1).

Three kernels. The first multiplies each slot of tokens with the heads' queries and, in the same pass over x, with the
gradient of their sequence's sums. The second, small one turns a sequence's scores into weights a once more and those
products da into ds = a (da - sum a da + dlse). The weights come from the scores' own sum, not from the forward's lse:
rounding of large scores would not cancel between two orders of summation. The third gives each program a slice of the
width and a share of the sequences: it reads x once more, writes dx = a dP + ds u, and keeps its part of
du = sum ds x in registers all the while.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from d2llm_kernels.backends.triton import table
from d2llm_kernels.backends.triton.language import below, dot, known_multiple, operand, store
from d2llm_kernels.backends.triton.pool_forward import MAX_HEADS, some_heads
from d2llm_kernels.backends.triton.sequences import (
    CHANGING,
    Batch,
    describe,
    first_slot,
    owner,
    rows_of,
    tokens_of,
    valid_tokens,
)
from d2llm_kernels.tensors import accumulate_dtype

# Programs of the third kernel that keep a large GPU busy. A constant, so that sums of du are ordered alike everywhere.
_PROGRAMS = 512
# The gradient of the sums comes in any order of its dimensions, so that B may be in either stride.
_SLOPE_STRIDES = ("dpooled_stride_b", "dpooled_stride_h")


@triton.jit(do_not_specialize=[*CHANGING, *_SLOPE_STRIDES])
def pool_products_kernel(
    x,
    mask,
    cu_seqlens,
    u,
    dpooled,
    scores,
    products,
    sequences,
    length,
    x_stride_b,
    x_stride_l,
    mask_stride_b,
    mask_stride_l,
    u_stride_h,
    dpooled_stride_b,
    dpooled_stride_h,
    WIDTH: tl.constexpr,
    HEADS: tl.constexpr,
    DTYPE: tl.constexpr,
    SUM: tl.constexpr,
    PRECISION: tl.constexpr,
    ALIGNED: tl.constexpr,
    PACKED: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """A slot's scores x u, -inf where masked, and products da = x dP, both (rows, BLOCK_H) in SUM."""
    slot = tl.program_id(0)
    b = owner(cu_seqlens, slot, sequences, length, BLOCK_L, PACKED)
    tile = slot - first_slot(cu_seqlens, b, True, length, BLOCK_L, PACKED)
    tokens, kept, row, count = tokens_of(
        x, mask, cu_seqlens, b, length, x_stride_b, x_stride_l, mask_stride_b, ALIGNED, PACKED
    )
    here = tile * BLOCK_L + tl.arange(0, BLOCK_L)
    heads = tl.arange(0, BLOCK_H)
    known = below(heads, HEADS, BLOCK_H)
    valid = valid_tokens(kept, here, count, mask_stride_l, MASKED)
    rows = tokens + here.to(tl.int64)[:, None] * x_stride_l
    gradient = dpooled + b.to(tl.int64) * known_multiple(dpooled_stride_b, ALIGNED)
    dpooled_stride_h = known_multiple(dpooled_stride_h, ALIGNED)

    s = tl.zeros((BLOCK_L, BLOCK_H), SUM)
    da = tl.zeros((BLOCK_L, BLOCK_H), SUM)
    width = tl.where(tl.max(valid.to(tl.int32), 0) > 0, WIDTH, 0)
    for first in range(0, width, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)
        in_width = below(d, WIDTH, BLOCK_D)
        side = known[None, :] & in_width[:, None]
        block = tl.load(rows + d[None, :], mask=valid[:, None] & in_width[None, :], other=0)
        query = tl.load(u + heads[None, :] * u_stride_h + d[:, None], mask=side, other=0)
        slope = tl.load(gradient + heads[None, :] * dpooled_stride_h + d[:, None], mask=side, other=0)
        block = operand(block, DTYPE)
        s = dot(block, operand(query, DTYPE), s, PRECISION)
        da = dot(block, operand(slope, DTYPE), da, PRECISION)

    where = (row + here)[:, None] * BLOCK_H + heads[None, :]
    inside = ((here >= 0) & (here < count))[:, None]
    tl.store(scores + where, tl.where(valid[:, None], s, float("-inf")), mask=inside)
    tl.store(products + where, da, mask=inside)


@triton.jit(do_not_specialize=["length", "dlse_stride_b", "dlse_stride_h"])
def pool_softmax_kernel(
    scores,
    products,
    dlse,
    a,
    ds,
    cu_seqlens,
    length,
    dlse_stride_b,
    dlse_stride_h,
    HEADS: tl.constexpr,
    SUM: tl.constexpr,
    PACKED: tl.constexpr,
    HAS_DLSE: tl.constexpr,
    WANT_DX: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """Of one sequence: weights a and ds = a (da - sum a da + dlse), (rows, BLOCK_H), as operands of the last kernel.

    Only dx takes weights.
    """
    b = tl.program_id(0)
    row, count = rows_of(cu_seqlens, b, length, PACKED)
    scores, products = scores + row * BLOCK_H, products + row * BLOCK_H
    ds += row * BLOCK_H
    heads = tl.arange(0, BLOCK_H)
    top = tl.full((BLOCK_H,), float("-inf"), SUM)
    denominator = tl.zeros((BLOCK_H,), SUM)
    mean = tl.zeros((BLOCK_H,), SUM)
    for first in range(0, count, BLOCK_L):
        here = first + tl.arange(0, BLOCK_L)
        where = here.to(tl.int64)[:, None] * BLOCK_H + heads[None, :]
        s = tl.load(scores + where, mask=(here < count)[:, None], other=float("-inf"))
        da = tl.load(products + where, mask=(here < count)[:, None], other=0)
        higher = tl.maximum(top, tl.max(s, 0))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        shrink = tl.exp(top - base)
        weight = tl.exp(s - base[None, :])
        denominator = denominator * shrink + tl.sum(weight, 0)
        mean = mean * shrink + tl.sum(weight * da, 0)
        top = higher
    base = tl.where(top == float("-inf"), 0.0, top)
    denominator = tl.where(denominator != 0, denominator, 1.0)
    mean /= denominator
    slope = tl.zeros((BLOCK_H,), SUM)
    if HAS_DLSE:
        slope += tl.load(dlse + b.to(tl.int64) * dlse_stride_b + heads * dlse_stride_h, mask=heads < HEADS, other=0)
    for first in range(0, count, BLOCK_L):
        here = first + tl.arange(0, BLOCK_L)
        where = here.to(tl.int64)[:, None] * BLOCK_H + heads[None, :]
        s = tl.load(scores + where, mask=(here < count)[:, None], other=float("-inf"))
        da = tl.load(products + where, mask=(here < count)[:, None], other=0)
        weight = tl.exp(s - base[None, :]) / denominator[None, :]
        if WANT_DX:
            store(a + row * BLOCK_H + where, weight, (here < count)[:, None])
        store(ds + where, weight * (da - mean[None, :] + slope[None, :]), (here < count)[:, None])


@triton.jit(do_not_specialize=[*CHANGING, *_SLOPE_STRIDES, "chunks", "share"])
def pool_gradients_kernel(
    x,
    mask,
    cu_seqlens,
    u,
    dpooled,
    a,
    ds,
    dx,
    du,
    sequences,
    length,
    chunks,
    share,
    x_stride_b,
    x_stride_l,
    mask_stride_b,
    mask_stride_l,
    u_stride_h,
    dpooled_stride_b,
    dpooled_stride_h,
    WIDTH: tl.constexpr,
    HEADS: tl.constexpr,
    DTYPE: tl.constexpr,
    SUM: tl.constexpr,
    PRECISION: tl.constexpr,
    ALIGNED: tl.constexpr,
    PACKED: tl.constexpr,
    MASKED: tl.constexpr,
    ADD: tl.constexpr,
    WANT_DX: tl.constexpr,
    WANT_DU: tl.constexpr,
    BLOCK_L: tl.constexpr,
    SLICE: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """dx, contiguous like x, and du (programs of axis 1, HEADS, WIDTH) in SUM. Each sequence is cut into ``chunks``;
    a program takes ``share`` chunks and a slice of the width. ADD adds to dx, for all but the first group of heads.
    One of the two alone is half the work: dx needs no token, du no weight."""
    d = tl.program_id(0) * SLICE + tl.arange(0, SLICE)
    heads = tl.arange(0, BLOCK_H)
    in_width = below(d, WIDTH, SLICE)
    side = below(heads, HEADS, BLOCK_H)[:, None] & in_width[None, :]
    if WANT_DX:
        query = operand(tl.load(u + heads[:, None] * u_stride_h + d[None, :], mask=side, other=0), DTYPE)
    if WANT_DU:
        total = tl.zeros((BLOCK_H, SLICE), SUM)
    group = tl.program_id(1)
    dpooled_stride_h = known_multiple(dpooled_stride_h, ALIGNED)
    for chunk in range(group * share, tl.minimum((group + 1) * share, sequences * chunks)):
        b = chunk // chunks
        tokens, kept, row, count = tokens_of(
            x, mask, cu_seqlens, b, length, x_stride_b, x_stride_l, mask_stride_b, ALIGNED, PACKED
        )
        step = (count + chunks * BLOCK_L - 1) // (chunks * BLOCK_L) * BLOCK_L
        start = (chunk % chunks) * step
        if WANT_DX:
            gradient = dpooled + b.to(tl.int64) * known_multiple(dpooled_stride_b, ALIGNED)
            slope = tl.load(gradient + heads[:, None] * dpooled_stride_h + d[None, :], mask=side, other=0)
            slope = operand(slope, DTYPE)
        for first in range(start, tl.minimum(start + step, count), BLOCK_L):
            here = first + tl.arange(0, BLOCK_L)
            inside = here < count
            place = here.to(tl.int64)[:, None]
            where = (row + place) * BLOCK_H + heads[None, :]
            delta = operand(tl.load(ds + where, mask=inside[:, None], other=0), DTYPE)
            if WANT_DU:
                valid = valid_tokens(kept, here, count, mask_stride_l, MASKED)
                read = valid[:, None] & in_width[None, :]
                block = tl.load(tokens + place * x_stride_l + d[None, :], mask=read, other=0)
                total = dot(tl.trans(delta), operand(block, DTYPE), total, PRECISION)
            if WANT_DX:
                weight = operand(tl.load(a + where, mask=inside[:, None], other=0), DTYPE)
                out = dot(delta, query, tl.zeros((BLOCK_L, SLICE), SUM), PRECISION)
                out = dot(weight, slope, out, PRECISION)
                target = dx + (row + place) * WIDTH + d[None, :]
                written = inside[:, None] & in_width[None, :]
                if ADD:
                    out += tl.load(target, mask=written, other=0).to(SUM)
                store(target, out, written)
    if WANT_DU:
        tl.store(du + (group.to(tl.int64) * HEADS + heads[:, None]) * WIDTH + d[None, :], total, mask=side)


def attn_pool_backward(
    dpooled: Tensor,
    dlse: Tensor | None,
    x: Tensor,
    u: Tensor,
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    """Gradients of ``attn_pool`` with respect to x and u, each empty, (0,), unless it is ``wanted``.

    dx is 0 at masked tokens.
    """
    want_x, want_u = wanted
    batch = describe(x, mask, cu_seqlens)
    u = u if u.stride(-1) == 1 else u.contiguous()
    dpooled = dpooled if dpooled.stride(-1) == 1 else dpooled.contiguous()
    dx = torch.empty_like(x, memory_format=torch.contiguous_format) if want_x else x.new_empty(0)
    if not (batch.rows and batch.sequences):
        return dx, torch.zeros_like(u, memory_format=torch.contiguous_format) if want_u else u.new_empty(0)
    # Several groups of heads add up in dx; it then has to hold sums between them.
    sums = dx if u.shape[0] <= MAX_HEADS else dx.to(accumulate_dtype(x.dtype, u.dtype))
    parts = []
    for first in range(0, u.shape[0], MAX_HEADS):
        group = (some_heads(u, 0, first), some_heads(dpooled, 1, first))
        some = None if dlse is None else some_heads(dlse, 1, first)
        parts.append(_launch(batch, *group, some, sums if want_x else None, want_u, first > 0))
    du = (parts[0] if len(parts) == 1 else torch.cat(parts)).to(u.dtype)
    return sums.to(x.dtype), du


def _launch(
    batch: Batch, u: Tensor, dpooled: Tensor, dlse: Tensor | None, dx: Tensor | None, want_u: bool, add: bool
) -> Tensor:
    """Write (or add) to dx, if there is one, what at most MAX_HEADS heads contribute.

    Returns:
        their du in the sums' dtype: (H, D), or (0,) if it is not wanted.
    """
    heads, width = u.shape
    dtype, arch = torch.promote_types(batch.x.dtype, u.dtype), table.architecture(u.device)
    elements = table.elements(arch, dtype)
    tiles = {
        name: table.tiles(name, arch, dtype, D=width, H=heads)
        for name in ("pool_products", "pool_softmax", "pool_gradients")
    }
    block = tiles["pool_products"]["BLOCK_H"]
    wide = accumulate_dtype(dtype)
    scores, products = u.new_empty(2, batch.rows, block, dtype=wide)
    ds = u.new_empty(batch.rows, block, dtype=dtype)
    a = None if dx is None else torch.empty_like(ds)
    common = {"WIDTH": width, "HEADS": heads}
    sides = {"u": u, "dpooled": dpooled, "u_stride_h": u.stride(0)}
    sides |= {"dpooled_stride_b": dpooled.stride(0), "dpooled_stride_h": dpooled.stride(1)}
    arguments = batch.arguments | sides | {"ALIGNED": batch.aligned(dpooled)}
    pool_products_kernel[(batch.slots(tiles["pool_products"]["BLOCK_L"]),)](
        **arguments, **common, **elements, **tiles["pool_products"], scores=scores, products=products,
    )  # fmt: skip
    pool_softmax_kernel[(batch.sequences,)](
        scores=scores, products=products, dlse=scores if dlse is None else dlse, a=a, ds=ds,
        cu_seqlens=batch.cu_seqlens, length=batch.length,
        dlse_stride_b=0 if dlse is None else dlse.stride(0), dlse_stride_h=0 if dlse is None else dlse.stride(1),
        HEADS=heads, SUM=elements["SUM"], PACKED=batch.cu_seqlens is not None, HAS_DLSE=dlse is not None,
        WANT_DX=dx is not None, **tiles["pool_softmax"],
    )  # fmt: skip
    slices = triton.cdiv(width, tiles["pool_gradients"]["SLICE"])
    wanted = max(1, _PROGRAMS // slices)
    longest = max(1, triton.cdiv(batch.rows, batch.sequences * tiles["pool_gradients"]["BLOCK_L"]))
    chunks = min(longest, triton.cdiv(wanted, batch.sequences))
    share = triton.cdiv(batch.sequences * chunks, wanted)
    groups = triton.cdiv(batch.sequences * chunks, share)
    du = u.new_empty(groups, heads, width, dtype=wide) if want_u else None
    pool_gradients_kernel[(slices, groups)](
        **arguments, **common, **elements, **tiles["pool_gradients"],
        a=a, ds=ds, dx=dx, du=du, chunks=chunks, share=share, ADD=add, WANT_DX=dx is not None, WANT_DU=want_u,
    )  # fmt: skip
    return u.new_empty(0, dtype=wide) if du is None else du.sum(0)
