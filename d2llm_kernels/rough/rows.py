"""Projected passages in int8: each row as F whole numbers and one float32 scale, around a centre that all share."""

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from d2llm_kernels.errors import require, shape


def quantize(b: Tensor) -> tuple[Tensor, Tensor]:
    """Round rows to int8, each with the scale that takes its largest value to 127.

    Scores depend on a + b alone. To take a vector c from every row of b and add it to every row of a leaves them as
    they are; with c the mean of b's rows the error halves (``Int8Rows.of`` does so).

    Args:
        b: (Np, F), finite, any floating dtype.

    Returns:
        values (Np, F) int8 and scale (Np,) float32; ``values * scale[:, None]`` is within half a scale of ``b``.

    Raises:
        ArgumentError: on a wrong shape or dtype, NaN or infinity.
    """
    require(b.dim() == 2 and b.is_floating_point(), "b", "a floating point tensor of shape (Np, F)", shape(b))
    wide = b.detach().float()
    scale = wide.abs().amax(1) / 127 if b.shape[1] else wide.new_zeros(b.shape[0])
    # The largest of a row is NaN or infinite where any of it is.
    require(bool(scale.isfinite().all()), "b", "values that are finite in float32", "NaN or infinity")
    # A row of zeros, or of values so small that their scale is 0, becomes zeros.
    values = torch.round(wide / scale.where(scale > 0, 1)[:, None])
    return values.clamp(-127, 127).to(torch.int8), scale


@dataclass(frozen=True)
class Int8Rows:
    """n rows, ``values * scale[:, None] + centre``.

    The centre goes to the queries at search. Without what all rows share a step of int8 is smaller: scores of a trained
    student came within half the error.
    """

    values: Tensor  # (n, F) int8
    scale: Tensor  # (n,) float32
    centre: Tensor  # (F,) float32

    @classmethod
    def of(cls, rows: Tensor) -> "Int8Rows":
        """Round rows (n, F), finite, around their mean."""
        centre = rows.float().mean(0)
        return cls(*quantize(rows.float() - centre), centre)

    @property
    def shape(self) -> torch.Size:
        """(n, F)."""
        return self.values.shape

    @property
    def dtype(self) -> torch.dtype:
        """``torch.int8``."""
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        """Where all three lie."""
        return self.values.device

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: slice | Tensor) -> "Int8Rows":
        return Int8Rows(self.values[rows], self.scale[rows], self.centre)

    def to(self, device: torch.device) -> "Int8Rows":
        """The rows on a device."""
        return Int8Rows(self.values.to(device), self.scale.to(device), self.centre.to(device))

    def widened(self) -> Tensor:
        """The rows (n, F) in float32."""
        return self.values.float() * self.scale[:, None] + self.centre


#: n projected passages, (n, F) in a floating dtype or in int8.
Rows: TypeAlias = Tensor | Int8Rows


def widened(rows: Rows) -> Tensor:
    """The rows in a floating dtype."""
    return rows.widened() if isinstance(rows, Int8Rows) else rows
