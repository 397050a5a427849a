"""Argument checks shared by every backend, and the reading of masks and packed offsets."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from d2llm_kernels.errors import ArgumentError

_INTEGERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def require(condition: bool, name: str, expected: str, got: Any) -> None:
    """Raise ``ArgumentError`` with the name of the argument unless ``condition`` holds."""
    if not condition:
        raise ArgumentError(f"{name}: expected {expected}, got {got}")


def shape(tensor: Tensor) -> tuple[int, ...]:
    """Shape as a plain tuple, for messages."""
    return tuple(tensor.shape)


def accumulate_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """Type in which sums are kept: float64 when any input is, float32 otherwise."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


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
        require(mask.dtype in _INTEGERS, "mask", "bool or integers, nonzero for a valid token", mask.dtype)
        require(mask.device == x.device, "mask", f"device {x.device}", mask.device)


def packed_bounds(cu_seqlens: Tensor, total: int) -> list[tuple[int, int]]:
    """(start, end) of each packed sequence.

    Raises:
        ArgumentError: unless the offsets rise from 0 to ``total`` (equal neighbours are empty sequences).
    """
    offsets: list[int] = cu_seqlens.tolist()
    rising = all(a <= b for a, b in pairwise(offsets))
    require(
        rising and offsets[0] == 0 and offsets[-1] == total,
        "cu_seqlens",
        f"non-decreasing offsets from 0 to {total}",
        offsets if len(offsets) <= 16 else f"{offsets[:8]}...{offsets[-8:]}",
    )
    return list(pairwise(offsets))


def rising_offsets(cu_seqlens: Tensor, x: Tensor) -> Tensor:
    """The offsets of packed x (T, D) beside it, in an order that no kernel loses its way in.

    Offsets on a device are not looked at from the host, which waits for nothing. Should they fall, their running
    maximum still keeps every kernel inside the batch and lets it come to an end. Offsets on the host are checked there
    and copied to a GPU from pinned memory without waiting; a CUDA graph would repeat that copy with the same ones.

    Raises:
        ArgumentError: if offsets that lie on the host do not rise from 0 to T.
    """
    if cu_seqlens.device.type != "cpu":
        return cu_seqlens.to(x.device).cummax(0).values
    packed_bounds(cu_seqlens, x.shape[0])
    cu_seqlens = cu_seqlens.contiguous()
    return cu_seqlens.pin_memory().to(x.device, non_blocking=True) if x.is_cuda else cu_seqlens


def check_interaction(
    a: Tensor,
    b: Tensor,
    weight: Tensor,
    bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    rank: int | None,
    stacked: bool = False,
) -> None:
    """Check projected queries ``a`` and passages ``b`` (..., F) against the weights of one IEM branch.

    Args:
        rank: number of dimensions that ``a`` and ``b`` must have, or None for any.
        stacked: whether weight and bias are those of several branches, (T, F, F) and (T, F).

    Raises:
        ArgumentError: on a wrong shape or a dtype that is not floating point.
    """
    named: Sequence[tuple[str, Tensor]] = (("a", a), ("b", b), ("weight", weight))
    for name, tensor in named:
        require(tensor.is_floating_point(), name, "a floating point tensor", tensor.dtype)
    square = weight.dim() == 2 + stacked and weight.shape[-2] == weight.shape[-1] and 0 not in weight.shape[:-2]
    require(square, "weight", "shape (T, F, F)" if stacked else "shape (F, F)", shape(weight))
    width, branches = weight.shape[-1], weight.shape[:-2]
    for name, tensor in named[:2]:
        if rank is None:
            require(tensor.dim() >= 1 and tensor.shape[-1] == width, name, f"shape (..., {width})", shape(tensor))
        else:
            require(tensor.dim() == rank and tensor.shape[-1] == width, name, f"shape (N, {width})", shape(tensor))
    require(bias.shape == (*branches, width), "bias", f"shape {(*branches, width)}", shape(bias))
    require(out_weight.shape == (1, width), "out_weight", f"shape (1, {width})", shape(out_weight))
    require(out_bias.shape == (1,), "out_bias", "shape (1,)", shape(out_bias))


def check_in_batch(
    z_in_batch: Tensor,
    z_hard: Tensor | None,
    s_hard: Tensor | None,
    s_in_batch: Tensor | None,
    duplicates: Tensor | None,
    temperature: float,
) -> None:
    """Check the scores of a batch's pairs (B, B) against those of its hard negatives (B, K).

    Raises:
        ArgumentError: on a wrong shape, dtype or device, on one of ``z_hard`` and ``s_hard`` without the other, or on
            a temperature that is not positive.
    """
    require(z_in_batch.dim() == 2 and z_in_batch.shape[0] > 0, "z_in_batch", "shape (B, B), B > 0", shape(z_in_batch))
    batch = z_in_batch.shape[0]
    require(z_in_batch.shape[1] == batch, "z_in_batch", f"shape ({batch}, {batch})", shape(z_in_batch))
    require((z_hard is None) == (s_hard is None), "s_hard", "given together with z_hard", "one of them alone")
    if z_hard is not None and s_hard is not None:
        require(z_hard.dim() == 2 and z_hard.shape[0] == batch, "z_hard", f"shape ({batch}, K)", shape(z_hard))
        require(s_hard.shape == z_hard.shape, "s_hard", f"shape {shape(z_hard)}", shape(s_hard))
    named = {"z_in_batch": z_in_batch, "z_hard": z_hard, "s_hard": s_hard, "s_in_batch": s_in_batch}
    for name, tensor in named.items():
        if tensor is not None:
            require(tensor.is_floating_point(), name, "a floating point tensor", tensor.dtype)
    for name, tensor in (named | {"duplicates": duplicates}).items():
        if tensor is not None:
            require(tensor.device == z_in_batch.device, name, f"device {z_in_batch.device}", tensor.device)
    for name, tensor in (("s_in_batch", s_in_batch), ("duplicates", duplicates)):
        if tensor is not None:
            require(tensor.shape == z_in_batch.shape, name, f"shape {shape(z_in_batch)}", shape(tensor))
    if duplicates is not None:
        require(duplicates.dtype in _INTEGERS, "duplicates", "bool or integers", duplicates.dtype)
    require(0 < temperature < float("inf"), "temperature", "a positive number", temperature)
