"""Attention pooling, forward: every hidden state is read from memory once (algebra: docs/algebra.md, section 1).

A program of the one kernel does one of two jobs. A *score* job multiplies a slot of tokens with every head's query; a
*pool* job takes a sequence and a slice of the width and sums its tokens, weighted by the softmax of their scores. All
of D goes into a score and all of a sequence into a sum, so no job can do both. What makes one pass over memory of two
passes over the data is the order: a sequence's pool jobs come shortly after its score jobs, while its tokens are
still in the L2 cache.

Pool jobs wait for the scores that they need. Jobs are handed out by a ticket, so that a job waits only for jobs that
have already started: the kernel comes to an end on any number of multiprocessors. Who computes what never decides how
it is summed, so results do not depend on the schedule.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from d2llm_kernels.backends.triton import table
from d2llm_kernels.backends.triton.language import below, dot, operand, store
from d2llm_kernels.backends.triton.sequences import (
    CHANGING,
    SEARCH,
    Batch,
    describe,
    first_slot,
    owner,
    tokens_of,
    valid_tokens,
)
from d2llm_kernels.tensors import accumulate_dtype

# More heads than this are pooled in several launches: scores and sums of 64 heads still fit the registers.
MAX_HEADS = 64


@triton.jit(do_not_specialize=[*CHANGING, "slots"])
def pool_forward_kernel(
    x,
    mask,
    cu_seqlens,
    u,
    pooled,
    lse,
    scores,
    parts,
    counters,
    sequences,
    length,
    slots,
    x_stride_b,
    x_stride_l,
    mask_stride_b,
    mask_stride_l,
    u_stride_h,
    pooled_stride_b,
    lse_stride_b,
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
    SLICE: tl.constexpr,
    SPLITS: tl.constexpr,
    LAG: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """``scores`` (rows, BLOCK_H) and ``parts`` (slots, SPLITS, BLOCK_L, BLOCK_H) are workspaces in SUM; ``counters``
    (1 + B + slots,) int32 zeros hold the ticket, the scored slots of each sequence, the scored parts of each slot."""
    SLICES: tl.constexpr = (WIDTH + SLICE - 1) // SLICE
    scored, arrived = counters + 1, counters + 1 + sequences
    ticket = tl.atomic_add(counters, 1, sem="relaxed")
    score_jobs = slots * SPLITS

    # Sequence b's pool jobs follow LAG score jobs after its own last one. Of how many sequences have they begun by now?
    started = 0
    for first in range(0, sequences, SEARCH):
        b = first + tl.arange(0, SEARCH)
        known = b < sequences
        after = first_slot(cu_seqlens, b + 1, known, length, BLOCK_L, PACKED) * SPLITS + LAG
        started += tl.sum(((tl.minimum(after, score_jobs) + b * SLICES <= ticket) & known).to(tl.int32), 0)
    b = tl.maximum(started - 1, 0)
    end = first_slot(cu_seqlens, b + 1, True, length, BLOCK_L, PACKED)
    slice_ = ticket - tl.minimum(end * SPLITS + LAG, score_jobs) - b * SLICES

    if (started > 0) & (slice_ < SLICES):
        needed = end - first_slot(cu_seqlens, b, True, length, BLOCK_L, PACKED)
        while tl.atomic_add(scored + b, 0, sem="acquire") < needed:
            pass
        tl.debug_barrier()
        tokens, kept, row, count = tokens_of(
            x, mask, cu_seqlens, b, length, x_stride_b, x_stride_l, mask_stride_b, ALIGNED, PACKED
        )
        _pool(
            tokens, kept, scores + row * BLOCK_H, count, slice_ * SLICE,
            pooled + b.to(tl.int64) * pooled_stride_b, lse + b.to(tl.int64) * lse_stride_b,
            x_stride_l, mask_stride_l, WIDTH, HEADS, DTYPE, SUM, PRECISION, MASKED, BLOCK_L, BLOCK_H, SLICE,
        )  # fmt: skip
    else:
        job = ticket - started * SLICES
        slot, split = job // SPLITS, job % SPLITS
        b = owner(cu_seqlens, slot, sequences, length, BLOCK_L, PACKED)
        tile = slot - first_slot(cu_seqlens, b, True, length, BLOCK_L, PACKED)
        tokens, kept, row, count = tokens_of(
            x, mask, cu_seqlens, b, length, x_stride_b, x_stride_l, mask_stride_b, ALIGNED, PACKED
        )
        here = tile * BLOCK_L + tl.arange(0, BLOCK_L)
        heads = tl.arange(0, BLOCK_H)
        valid = valid_tokens(kept, here, count, mask_stride_l, MASKED)
        total = _score(
            tokens, u, here, valid, split,
            x_stride_l, u_stride_h, WIDTH, HEADS, DTYPE, SUM, PRECISION, BLOCK_L, BLOCK_D, BLOCK_H, SPLITS,
        )  # fmt: skip
        last = True
        if SPLITS > 1:
            # Each part is stored; whoever comes last adds them up, always in the same order.
            place = tl.arange(0, BLOCK_L)[:, None] * BLOCK_H + heads[None, :]
            own = parts + slot.to(tl.int64) * (SPLITS * BLOCK_L * BLOCK_H) + place
            tl.store(own + split * (BLOCK_L * BLOCK_H), total)
            tl.debug_barrier()
            last = tl.atomic_add(arrived + slot, 1, sem="acq_rel") == SPLITS - 1
            tl.debug_barrier()
            if last:
                total = tl.load(own)
                for part in tl.static_range(1, SPLITS):
                    total += tl.load(own + part * (BLOCK_L * BLOCK_H))
        if last:
            # A masked token's score is -inf: the pool jobs need no other sign of it.
            total = tl.where(valid[:, None], total, float("-inf"))
            where = scores + (row + here)[:, None] * BLOCK_H + heads[None, :]
            inside = (here >= 0) & (here < count)
            tl.store(where, total, mask=inside[:, None])
            tl.debug_barrier()
            if (tile >= 0) & (slot < first_slot(cu_seqlens, b + 1, True, length, BLOCK_L, PACKED)):
                tl.atomic_add(scored + b, 1, sem="release")


@triton.jit
def _score(
    tokens,
    u,
    here,
    valid,
    split,
    x_stride_l,
    u_stride_h,
    WIDTH: tl.constexpr,
    HEADS: tl.constexpr,
    DTYPE: tl.constexpr,
    SUM: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_H: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Products of the tokens with every head's query over one of SPLITS parts of the width: (BLOCK_L, BLOCK_H)."""
    STEPS: tl.constexpr = (WIDTH + BLOCK_D * SPLITS - 1) // (BLOCK_D * SPLITS)
    heads = tl.arange(0, BLOCK_H)
    total = tl.zeros((BLOCK_L, BLOCK_H), SUM)
    # A slot of padding alone costs nothing.
    steps = tl.where(tl.max(valid.to(tl.int32), 0) > 0, STEPS, 0)
    rows = tokens + here.to(tl.int64)[:, None] * x_stride_l
    for step in range(0, steps):
        d = (split * STEPS + step) * BLOCK_D + tl.arange(0, BLOCK_D)
        known = below(d, WIDTH, BLOCK_D * SPLITS)
        block = tl.load(rows + d[None, :], mask=valid[:, None] & known[None, :], other=0)
        query = tl.load(
            u + heads[None, :] * u_stride_h + d[:, None],
            mask=below(heads, HEADS, BLOCK_H)[None, :] & known[:, None],
            other=0,
        )
        total = dot(operand(block, DTYPE), operand(query, DTYPE), total, PRECISION)
    return total


@triton.jit
def _pool(
    tokens,
    kept,
    scores,
    count,
    first_d,
    pooled,
    lse,
    x_stride_l,
    mask_stride_l,
    WIDTH: tl.constexpr,
    HEADS: tl.constexpr,
    DTYPE: tl.constexpr,
    SUM: tl.constexpr,
    PRECISION: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_H: tl.constexpr,
    SLICE: tl.constexpr,
):
    """Weighted sum of a sequence's tokens over a slice of the width, the softmax rescaled as its maximum rises."""
    heads = tl.arange(0, BLOCK_H)
    d = first_d + tl.arange(0, SLICE)
    in_width = below(d, WIDTH, SLICE)
    top = tl.full((BLOCK_H,), float("-inf"), SUM)
    denominator = tl.zeros((BLOCK_H,), SUM)
    total = tl.zeros((BLOCK_H, SLICE), SUM)
    for first in range(0, count, BLOCK_L):
        here = first + tl.arange(0, BLOCK_L)
        valid = valid_tokens(kept, here, count, mask_stride_l, MASKED)
        row = here.to(tl.int64)
        block = tl.load(
            tokens + row[:, None] * x_stride_l + d[None, :], mask=valid[:, None] & in_width[None, :], other=0
        )
        s = tl.load(scores + row[None, :] * BLOCK_H + heads[:, None], mask=(here < count)[None, :], other=float("-inf"))
        higher = tl.maximum(top, tl.max(s, 1))
        # Before the first valid token the maximum is -inf, and -inf minus -inf is NaN.
        base = tl.where(higher == float("-inf"), 0.0, higher)
        shrink = tl.exp(top - base)
        weights = tl.exp(s - base[:, None])
        denominator = denominator * shrink + tl.sum(weights, 1)
        total = dot(operand(weights, DTYPE), operand(block, DTYPE), total * shrink[:, None], PRECISION)
        top = higher
    present = denominator != 0
    total = total / tl.where(present, denominator, 1.0)[:, None]
    known = below(heads, HEADS, BLOCK_H)
    store(pooled + heads[:, None] * WIDTH + d[None, :], total, known[:, None] & in_width[None, :])
    if first_d == 0:
        tl.store(
            lse + heads, tl.where(present, top + tl.log(tl.where(present, denominator, 1.0)), float("-inf")), mask=known
        )


def attn_pool(x: Tensor, u: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor]:
    """Forward of ``functional.attn_pool``: pooled (B, H, D) and lse (B, H)."""
    batch = describe(x, mask, cu_seqlens)
    u = u if u.stride(-1) == 1 else u.contiguous()
    heads, width = u.shape
    dtype, wide = torch.promote_types(x.dtype, u.dtype), accumulate_dtype(x.dtype, u.dtype)
    pooled = x.new_empty(batch.sequences, heads, width, dtype=dtype)
    lse = x.new_empty(batch.sequences, heads, dtype=wide)
    for first in range(0, heads if batch.sequences else 0, MAX_HEADS):
        _launch(batch, some_heads(u, 0, first), some_heads(pooled, 1, first), some_heads(lse, 1, first))
    return pooled, lse


def some_heads(tensor: Tensor, dim: int, first: int) -> Tensor:
    """At most MAX_HEADS heads from ``first`` on; where these are all, the tensor itself: the host is spared a view."""
    heads = tensor.shape[dim]
    return tensor if heads <= MAX_HEADS else tensor.narrow(dim, first, min(MAX_HEADS, heads - first))


def _launch(batch: Batch, u: Tensor, pooled: Tensor, lse: Tensor) -> None:
    """Pool with at most MAX_HEADS queries."""
    heads, width = u.shape
    arch = table.architecture(u.device)
    tiles = table.tiles("pool_forward", arch, pooled.dtype, D=width, H=heads)
    slots = batch.slots(tiles["BLOCK_L"])
    counters = torch.zeros(1 + batch.sequences + slots, dtype=torch.int32, device=u.device)
    part = (slots, tiles["SPLITS"], tiles["BLOCK_L"], tiles["BLOCK_H"])
    programs = slots * tiles["SPLITS"] + batch.sequences * triton.cdiv(width, tiles["SLICE"])
    pool_forward_kernel[(programs,)](
        **batch.arguments,
        u=u,
        pooled=pooled,
        lse=lse,
        scores=lse.new_empty(batch.rows, tiles["BLOCK_H"]),
        parts=lse.new_empty(part if tiles["SPLITS"] > 1 else 0),
        counters=counters,
        slots=slots,
        u_stride_h=u.stride(0),
        pooled_stride_b=pooled.stride(0),
        lse_stride_b=lse.stride(0),
        WIDTH=width,
        HEADS=heads,
        **table.elements(arch, pooled.dtype),
        **tiles,
    )
