"""What the losses share: checks of shapes, masks of groups, the number type of sums."""

import torch
from torch import Tensor

from d2llm.errors import InputError


def as_float(x: Tensor) -> Tensor:
    """At least float32: half precision has too few digits for differences of logits."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def group_mask(z: Tensor, s: Tensor, valid: Tensor | None) -> Tensor:
    """Check the shapes of a group loss; the mask of passages that take part, rows without a positive emptied."""
    if z.dim() != 2 or z.shape[0] == 0 or z.shape[1] == 0:
        raise InputError(f"z: expected (B, 1+K) with B at least 1, got {tuple(z.shape)}")
    same_shape("s", s, z)
    if valid is None:
        return torch.ones_like(z, dtype=torch.bool)
    same_shape("valid", valid, z)
    return valid.bool() & valid[:, :1].bool()


def square(name: str, x: Tensor) -> int:
    """B of a (B, B) tensor."""
    if x.dim() != 2 or x.shape[0] != x.shape[1] or x.shape[0] == 0:
        raise InputError(f"{name}: expected (B, B) with B at least 1, got {tuple(x.shape)}")
    return x.shape[0]


def same_shape(name: str, x: Tensor, like: Tensor) -> None:
    """Make sure that a tensor has the shape of another."""
    if x.shape != like.shape:
        raise InputError(f"{name}: expected shape {tuple(like.shape)}, got {tuple(x.shape)}")
