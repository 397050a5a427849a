"""Attention pooling on the C++ kernels."""

from collections.abc import Sequence

import torch
from torch import Tensor

from d2llm_kernels.backends.cpu.library import operators
from d2llm_kernels.offsets import packed_bounds
from d2llm_kernels.tensors import cast_like, promoted


def attn_pool(x: Tensor, u: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor]:
    """Forward of ``functional.attn_pool``."""
    return operators().attn_pool(*promoted(x, u), *_layout(x, mask, cu_seqlens))


def attn_pool_backward(
    dpooled: Tensor,
    dlse: Tensor | None,
    x: Tensor,
    u: Tensor,
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    """Gradients of ``attn_pool`` for x and u, each empty, (0,), unless it is ``wanted``; both are computed."""
    gradients = operators().attn_pool_backward(dpooled, dlse, *promoted(x, u), *_layout(x, mask, cu_seqlens))
    dx, du = cast_like(gradients, (x, u))
    return dx if wanted[0] else x.new_empty(0), du if wanted[1] else u.new_empty(0)


def _layout(x: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """The mask as contiguous bool and the offsets, checked, as int64; the C++ side relies on both."""
    if cu_seqlens is not None:
        packed_bounds(cu_seqlens, x.shape[0])
        return None, cu_seqlens.to("cpu", torch.int64).contiguous()
    return None if mask is None else mask.bool().contiguous(), None
