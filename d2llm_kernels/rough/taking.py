"""Rows out of many chunks, taken by number."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from d2llm_kernels import backends
from d2llm_kernels.errors import require
from d2llm_kernels.rough.rows import Int8Rows, Rows


@dataclass(frozen=True)
class Int8Taken:
    """n rows out of S chunks of ``Int8Rows``: ``values * scale[:, None] + centres[chunk]``."""

    values: Tensor  # (n, F) int8
    scale: Tensor  # (n,) float32
    centres: Tensor  # (S, F) float32
    chunk: Tensor  # (n,) int64, which one a row is of

    def widened(self) -> Tensor:
        """The rows (n, F) in float32."""
        return self.values.float() * self.scale[:, None] + self.centres[self.chunk]


#: n rows (n, F), in a floating dtype or in int8.
Taken: TypeAlias = Tensor | Int8Taken


class Chunked:
    """Chunks of rows of one dtype, on the CPU, that count on from one to the next.

    Args:
        chunks: at least one.
    """

    def __init__(self, chunks: Sequence[Rows]) -> None:
        self._ends = torch.tensor([len(rows) for rows in chunks]).cumsum(0)
        whole = [rows for rows in chunks if isinstance(rows, Int8Rows)]
        self._values = [rows.values if isinstance(rows, Int8Rows) else rows for rows in chunks]
        self._scales = [rows.scale[:, None] for rows in whole]
        self._centres = torch.stack([rows.centre for rows in whole]) if whole else None

    def take(self, numbers: Tensor) -> Taken:
        """The rows of some numbers (n,) int64, in their order.

        Raises:
            ArgumentError: for a number that is out of range.
        """
        inside = not len(numbers) or bool((numbers.min() >= 0) & (numbers.max() < self._ends[-1]))
        require(inside, "numbers", f"numbers of rows, 0 to {int(self._ends[-1]) - 1}", "others")
        values = self._take(self._values, numbers)
        if self._centres is None:
            return values
        chunk = torch.bucketize(numbers, self._ends, right=True)
        return Int8Taken(values, self._take(self._scales, numbers).squeeze(1), self._centres, chunk)

    def _take(self, chunks: Sequence[Tensor], numbers: Tensor) -> Tensor:
        # Nothing is computed: whatever backend scores, the C++ kernels may fetch.
        if backends.missing("cpu") is None and (kernels := backends.named("cpu").int8()):
            return kernels.take_rows(chunks, numbers)
        out = chunks[0].new_empty(len(numbers), chunks[0].shape[1])
        which = torch.bucketize(numbers, self._ends, right=True)
        for chunk in which.unique().tolist():
            here = which == chunk
            out[here] = chunks[chunk][numbers[here] - self._ends[chunk] + len(chunks[chunk])]
        return out


def widened(rows: Taken) -> Tensor:
    """The rows in a floating dtype."""
    return rows.widened() if isinstance(rows, Int8Taken) else rows
