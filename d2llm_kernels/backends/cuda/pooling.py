"""Attention pooling on the CUDA kernels; what they do, and what they need beside the results, is told there."""

from collections.abc import Sequence

import torch
from torch import Tensor

from d2llm_kernels.backends.cuda.library import operators
from d2llm_kernels.offsets import rising_offsets
from d2llm_kernels.tensors import promoted


def attn_pool(x: Tensor, u: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor]:
    """Forward of ``functional.attn_pool``: pooled (B, H, D) and lse (B, H)."""
    pooled, lse = operators().pool(*_ready(x, u, mask, cu_seqlens))
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
    dx, du = operators().pool_gradients(dpooled, dlse, x, u, mask, offsets)
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
