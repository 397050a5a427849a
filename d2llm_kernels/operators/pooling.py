"""Attention pooling: a softmax-weighted sum of a sequence's tokens for each head (docs/algebra.md, section 1)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from d2llm_kernels import backends
from d2llm_kernels.errors import require, shape
from d2llm_kernels.tensors import accumulate_dtype, autocast, empty_gradients, given_gradients, promotion

#: Number types of a mask.
MASKS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def check_tokens(x: Tensor, width: int, mask: Tensor | None, cu_seqlens: Tensor | None) -> None:
    """Check a padded (B, L, D) or packed (T, D) batch of hidden states against its mask or offsets.

    Raises:
        ArgumentError: on a wrong rank, width, dtype or device, or when both or the wrong one of
            ``mask`` and ``cu_seqlens`` is given.
    """
    require(x.is_floating_point(), "x", "a floating point tensor", x.dtype)
    require(x.dim() in (2, 3), "x", "shape (B, L, D) or, with cu_seqlens, (T, D)", shape(x))
    require(x.shape[-1] == width, "x", f"a last dimension of {width}", shape(x))
    if cu_seqlens is not None:
        require(mask is None, "mask", "None together with cu_seqlens", "a mask")
        require(x.dim() == 2, "x", "shape (T, D) with cu_seqlens", shape(x))
        require(cu_seqlens.dim() == 1 and cu_seqlens.shape[0] >= 1, "cu_seqlens", "shape (B + 1,)", shape(cu_seqlens))
        require(cu_seqlens.dtype in (torch.int32, torch.int64), "cu_seqlens", "int32 or int64", cu_seqlens.dtype)
        return
    require(x.dim() == 3, "x", "shape (B, L, D) without cu_seqlens", shape(x))
    if mask is not None:
        require(mask.shape == x.shape[:2], "mask", f"shape {shape(x)[:2]}", shape(mask))
        require(mask.dtype in MASKS, "mask", "bool or integers, nonzero for a valid token", mask.dtype)
        require(mask.device == x.device, "mask", f"device {x.device}", mask.device)


def attn_pool(
    x: Tensor,
    u: Tensor,
    mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Softmax-weighted sums of a sequence's tokens, one for each head (docs/algebra.md, section 1).

    Args:
        x: hidden states, (B, L, D) padded or, with ``cu_seqlens``, (T, D) packed; any floating dtype.
        u: (H, D) one folded query per head, the scale included.
        mask: (B, L) bool or int, nonzero for a valid token, or None; holes are allowed.
        cu_seqlens: (B + 1,) int32 or int64 offsets from 0 to T; equal neighbours are empty sequences. Offsets on a GPU
            cost no synchronisation, and are not checked by the kernels there. Offsets on the host are checked and, for
            x on a GPU, copied without waiting in every call; a CUDA graph wants them on the GPU.
        backend: one of ``backends.NAMES``.

    Returns:
        pooled (B, H, D) in the promoted dtype of x and u, and lse (B, H), the logarithm of the softmax
        denominator, in float32 (float64 for float64). Without a valid token pooled is 0 and lse -inf.
        Masked tokens are never read and get a zero gradient.

    Raises:
        ArgumentError: on shapes, dtypes, devices or offsets that do not fit.
        BackendError: if a backend named explicitly is missing or takes no such tensors.
    """
    require(u.dim() == 2 and u.is_floating_point(), "u", "a floating point tensor of shape (H, D)", shape(u))
    require(u.shape[1] > 0, "u", "a width D of at least 1", shape(u))
    check_tokens(x, u.shape[1], mask, cu_seqlens)
    require(u.device == x.device, "u", f"device {x.device}", u.device)
    x, u = autocast(x, u)
    chosen = backends.select("attn_pool", backend, x.device, promotion(x, u))
    if formulas := backends.formulas(chosen):
        return formulas.attn_pool(x, u, mask, cu_seqlens)
    return attn_pool_operator(x, u, mask, cu_seqlens, chosen)


@torch.library.custom_op("d2llm::attn_pool", mutates_args=())
def attn_pool_operator(
    x: Tensor, u: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None, backend: str
) -> tuple[Tensor, Tensor]:
    """The work of ``attn_pool`` by a backend chosen beforehand."""
    return backends.named(backend).pooling().attn_pool(x, u, mask, cu_seqlens)


@attn_pool_operator.register_fake
def _(x: Tensor, u: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None, backend: str) -> tuple[Tensor, Tensor]:
    batch = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    pooled = x.new_empty(batch, u.shape[0], u.shape[1], dtype=promotion(x, u))
    return pooled, x.new_empty(batch, u.shape[0], dtype=accumulate_dtype(x.dtype, u.dtype))


@torch.library.custom_op("d2llm::attn_pool_backward", mutates_args=())
def attn_pool_backward(
    dpooled: Tensor,
    dlse: Tensor | None,
    x: Tensor,
    u: Tensor,
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
    backend: str,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    """Gradients of ``attn_pool`` for x and u, each empty, (0,), unless it is ``wanted``."""
    return backends.named(backend).pooling().attn_pool_backward(dpooled, dlse, x, u, mask, cu_seqlens, wanted)


@attn_pool_backward.register_fake
def _(
    dpooled: Tensor,
    dlse: Tensor | None,
    x: Tensor,
    u: Tensor,
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
    backend: str,
    wanted: Sequence[bool],
) -> tuple[Tensor, ...]:
    return empty_gradients((x, u), wanted)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:4])
    ctx.backend = inputs[4]
    ctx.pooled = (output[0].shape, output[0].dtype)


def _differentiate(ctx: Any, dpooled: Tensor | None, dlse: Tensor | None) -> tuple[Any, ...]:
    x, u, mask, cu_seqlens = ctx.saved_tensors
    if dpooled is None:
        dpooled = x.new_zeros(ctx.pooled[0], dtype=ctx.pooled[1])
    wanted = ctx.needs_input_grad[:2]
    gradients = attn_pool_backward(dpooled, dlse, x, u, mask, cu_seqlens, ctx.backend, wanted)
    return *given_gradients(gradients, wanted), None, None, None


attn_pool_operator.register_autograd(_differentiate, setup_context=_save)
