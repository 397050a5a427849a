"""How projected passages lie in an index: in a floating dtype, or in int8 with what belongs to it."""

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from d2llm_kernels import int8

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32, "int8": torch.int8}


@dataclass(frozen=True)
class Int8Rows:
    """n rows, ``values * scale[:, None] + centre``.

    Scores depend on query plus passage alone, so the centre of a segment's rows goes to the queries at search. Without
    what all rows share a step of int8 is smaller: scores of a trained student came within half the error.
    """

    values: Tensor  # (n, F) int8
    scale: Tensor  # (n,) float32
    centre: Tensor  # (F,) float32

    @classmethod
    def of(cls, rows: Tensor) -> "Int8Rows":
        """Round rows (n, F), finite, around their mean."""
        centre = rows.float().mean(0)
        return cls(*int8.quantize(rows.float() - centre), centre)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: slice | Tensor) -> "Int8Rows":
        return Int8Rows(self.values[rows], self.scale[rows], self.centre)

    def widened(self) -> Tensor:
        """The rows (n, F) in float32."""
        return self.values.float() * self.scale[:, None] + self.centre

    def tensors(self) -> dict[str, Tensor]:
        """What a file holds of them, by name."""
        return {"projected": self.values, "scale": self.scale, "centre": self.centre}


#: n projected passages.
Rows: TypeAlias = Tensor | Int8Rows
