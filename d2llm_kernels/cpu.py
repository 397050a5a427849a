"""The C++ kernels of ``csrc/cpu`` as a backend: loaded at first use, and only if built for the torch that runs.

Where the library is missing or was built for another torch, ``missing`` says so and nothing else is affected.
"""

from collections.abc import Sequence
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from d2llm_kernels import extension
from d2llm_kernels.checks import packed_bounds
from d2llm_kernels.iem_folded import Branch
from d2llm_kernels.promotion import cast_like, promoted, promotion, unwanted

#: Another file to load in place of the installed library.
LIBRARY = "D2LLM_KERNELS_LIBRARY"
DTYPES = (torch.float32, torch.bfloat16)
_EXTENSION = extension.Extension("_cpu", LIBRARY)


@cache
def missing() -> str | None:
    """Why the library cannot be used, or None once it is loaded."""
    return extension.missing(_EXTENSION)


def module() -> ModuleType:
    """The extension's module; importing it registers the operators.

    Raises:
        ImportError: if there is none, or it does not fit.
    """
    return extension.load(_EXTENSION)


def unsupported(device: str, dtype: torch.dtype) -> str | None:
    """Why the kernels cannot take tensors of this device type and (promoted) dtype, or None when they can."""
    if device != "cpu":
        return f"the C++ kernels take CPU tensors, got {device} tensors"
    if dtype not in DTYPES:
        return f"the C++ kernels take bfloat16 and float32, got {str(dtype).removeprefix('torch.')}"
    return None


def attn_pool(x: Tensor, u: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor]:
    """Forward of ``functional.attn_pool``."""
    return _ops().attn_pool(*promoted(x, u), *_layout(x, mask, cu_seqlens))


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
    gradients = _ops().attn_pool_backward(dpooled, dlse, *promoted(x, u), *_layout(x, mask, cu_seqlens))
    dx, du = cast_like(gradients, (x, u))
    return dx if wanted[0] else x.new_empty(0), du if wanted[1] else u.new_empty(0)


def iem_scores(a: Tensor, b: Tensor, branch: Branch) -> Tensor:
    """Forward of ``functional.iem_scores``."""
    return _ops().iem_scores(*promoted(a, b, *branch))


def iem_scores_backward(dz: Tensor, a: Tensor, b: Tensor, branch: Branch, wanted: Sequence[bool]) -> tuple[Tensor, ...]:
    """Gradients of ``iem_scores`` for its six tensors; all are made, whatever is wanted."""
    return _wanted(_ops().iem_scores_backward(dz, *promoted(a, b, *branch)), (a, b, *branch), wanted)


def iem_pairs(a: Tensor, b: Tensor, branch: Branch, return_features: bool) -> tuple[Tensor, Tensor]:
    """Forward of ``functional.iem_pairs`` on rows."""
    z, features = _ops().iem_pairs(*promoted(a, b, *branch), return_features)
    return z, features.to(promotion(a, b, branch.weight))


def iem_pairs_backward(
    dz: Tensor, dfeatures: Tensor | None, a: Tensor, b: Tensor, branch: Branch, wanted: Sequence[bool]
) -> tuple[Tensor, ...]:
    """Gradients of ``iem_pairs`` for its six tensors; all are made, whatever is wanted."""
    return _wanted(_ops().iem_pairs_backward(dz, dfeatures, *promoted(a, b, *branch)), (a, b, *branch), wanted)


def iem_topk(a: Tensor, b: Tensor, branch: Branch, k: int) -> tuple[Tensor, Tensor]:
    """Forward of ``functional.iem_topk``: O(k) memory for each query."""
    return _ops().iem_topk(*promoted(a, b, *branch), k)


def in_batch_terms(
    z_in_batch: Tensor,
    z_hard: Tensor,
    s_hard: Tensor,
    s_in_batch: Tensor | None,
    duplicates: Tensor | None,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Forward of ``functional.in_batch_terms``, in float32."""
    scores = _single(z_in_batch, z_hard, s_hard, s_in_batch)
    return _ops().in_batch_terms(*scores, _flags(duplicates), temperature)


def in_batch_terms_backward(
    dcross_entropy: Tensor | None,
    dpairwise: Tensor | None,
    z_in_batch: Tensor,
    z_hard: Tensor,
    s_hard: Tensor,
    s_in_batch: Tensor | None,
    duplicates: Tensor | None,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Gradients of ``in_batch_terms`` with respect to z_in_batch and z_hard; None stands for a gradient of 0."""
    scores = _single(z_in_batch, z_hard, s_hard, s_in_batch)
    slopes = _single(dcross_entropy, dpairwise)
    gradients = _ops().in_batch_terms_backward(*slopes, *scores, _flags(duplicates), temperature)
    dz_in_batch, dz_hard = cast_like(gradients, (z_in_batch, z_hard))
    return dz_in_batch, dz_hard


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Forward of the operator behind ``functional.linear``, in float32."""
    return _ops().linear(x, weight, bias)


def iem_scores_int8(a: Tensor, b: Tensor, scale: Tensor, branch: Branch) -> Tensor:
    """``int8.iem_scores``; all but b float32."""
    return _ops().iem_scores_int8(a, b, scale, *branch)


def iem_topk_int8(
    a: Tensor, b: Tensor, scale: Tensor, branch: Branch, k: int, candidates: int
) -> tuple[Tensor, Tensor]:
    """``int8.iem_topk``; all but b float32."""
    return _ops().iem_topk_int8(a, b, scale, *branch, k, candidates)


def _wanted(gradients: Sequence[Tensor], inputs: Sequence[Tensor], wanted: Sequence[bool]) -> tuple[Tensor, ...]:
    """Gradients of a and b and of a branch, those that are wanted, in the dtypes of the inputs."""
    found: tuple[Tensor, ...] = ()
    for given, part in zip(wanted, (slice(2), slice(2, None)), strict=True):
        found += cast_like(gradients[part], inputs[part]) if given else unwanted(*inputs[part])
    return found


def _ops() -> Any:
    module()
    return torch.ops.d2llm_cpu


def _single(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    return tuple(None if tensor is None else tensor.float() for tensor in tensors)


def _flags(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.bool()


def _layout(x: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """The mask as contiguous bool and the offsets, checked, as int64; the C++ side relies on both."""
    if cu_seqlens is not None:
        packed_bounds(cu_seqlens, x.shape[0])
        return None, cu_seqlens.to("cpu", torch.int64).contiguous()
    return None if mask is None else mask.bool().contiguous(), None
