"""Attention pooling on the CUDA kernels: workspaces and launches; what the kernels do is told beside them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from d2llm_kernels.checks import rising_offsets
from d2llm_kernels.cuda.library import operators
from d2llm_kernels.promotion import promoted

# Blocks that keep a large GPU busy. A constant, so that sums of du are ordered alike everywhere.
_BLOCKS = 512


def attn_pool(x: Tensor, u: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor]:
    """Forward of ``functional.attn_pool``: pooled (B, H, D) and lse (B, H)."""
    x, u, mask, offsets = _ready(x, u, mask, cu_seqlens)
    sequences = x.shape[0] if offsets is None else offsets.shape[0] - 1
    pooled = x.new_empty(sequences, *u.shape)
    lse = x.new_empty(sequences, u.shape[0], dtype=torch.float32)
    most, _, slot, _ = operators().pool_limits(x)
    for first in range(0, u.shape[0] if sequences else 0, most):
        group = slice(first, first + most)
        slots, splits, heads = operators().pool_sizes(x, u[group], mask, offsets)
        scores = lse.new_empty(slots, heads, slot)
        parts = lse.new_empty((slots, splits, heads, slot) if splits > 1 else 0)
        counters = torch.zeros(1 + sequences + slots, dtype=torch.int32, device=x.device)
        operators().pool(x, u[group], mask, offsets, pooled[:, group], lse[:, group], scores, parts, counters)
    return pooled, lse


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

    dx is 0 at masked tokens. The kernels compute both.
    """
    dtypes = x.dtype, u.dtype
    x, u, mask, offsets = _ready(x, u, mask, cu_seqlens)
    dpooled = dpooled.to(x.dtype)
    dpooled = dpooled if dpooled.stride(-1) == 1 else dpooled.contiguous()
    dlse = None if dlse is None else dlse.float()
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    du = torch.zeros(u.shape, dtype=torch.float32, device=x.device)
    if x.numel() and dpooled.shape[0]:
        heads, width = u.shape
        # Several groups of heads add up in dx, which is rounded once, at the end.
        _, most, slot, size = operators().pool_limits(x)
        sums = x.new_empty(x.shape, dtype=torch.float32) if heads > most else None
        for first in range(0, heads, most):
            group = slice(first, first + most)
            slots, _, rounded = operators().pool_sizes(x, u[group], mask, offsets)
            products = du.new_empty(slots, 2 * rounded, slot)
            weights = x.new_empty(products.shape)
            slices = -(-width * x.element_size() // size)
            parts = du.new_empty(min(slots, max(1, _BLOCKS // slices)), *u[group].shape)
            some = None if dlse is None else dlse[:, group]
            operators().pool_gradients(
                dpooled[:, group], some, x, u[group], mask, offsets, products, weights, dx, sums, parts,
                first == 0, first + most >= heads,
            )  # fmt: skip
            du[group] = parts.sum(0)
    return (
        dx.to(dtypes[0]) if wanted[0] else dx.new_empty(0, dtype=dtypes[0]),
        du.to(dtypes[1]) if wanted[1] else du.new_empty(0, dtype=dtypes[1]),
    )


def _ready(
    x: Tensor, u: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """One dtype, rows contiguous; the mask as bytes; offsets that never fall, beside x."""
    x, u = (t if t.stride(-1) == 1 else t.contiguous() for t in promoted(x, u))
    if cu_seqlens is not None:
        return x, u, None, rising_offsets(cu_seqlens, x).long()
    if mask is not None:
        mask = mask if mask.dtype in (torch.bool, torch.uint8) else mask != 0
        mask = mask.view(torch.uint8)
    return x, u, mask, None
