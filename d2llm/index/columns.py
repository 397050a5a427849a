"""Metadata of a segment in columns: of each field, which passages hold which value.

As with the terms of texts, each distinct value of a field, ascending, has the rows that hold it, so that those between
two bounds are one slice. A field called f has ``starts/f`` (V + 1,) int64 and ``rows/f`` int32: value i is held by
rows[starts[i]:starts[i + 1]]. Numbers, with 1 and 0 for true and false, are ``values/f`` (V,) float64; texts are
``bytes/f`` uint8, their UTF-8 one after the other, and ``offsets/f`` (V + 1,) int64, where each starts. All is mapped.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from d2llm.errors import FormatError
from d2llm.metadata import TEXT, Metadata
from d2llm.tensor_files import read_tensors, tensor_names


@dataclass(frozen=True)
class Values:
    """V distinct values, ascending, read one by one as they are asked for."""

    count: int
    at: Callable[[int], Any]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Any:
        return self.at(number)


@dataclass(frozen=True)
class Column:
    """A field: its distinct values, and rows[starts[i]:starts[i + 1]], ascending, that hold value i."""

    values: Values
    starts: NDArray[np.int64]
    rows: NDArray[np.int32]

    def between(self, low: int, high: int) -> NDArray[np.int32]:
        """Rows that hold one of the values from number ``low`` to below ``high``; none where that is no more."""
        return self.rows[int(self.starts[low]) : int(self.starts[max(low, high)])]


def tensors_of(passages: Sequence[Metadata]) -> dict[str, Tensor]:
    """The columns of passages, given as their checked metadata, as they go to the disk."""
    holders: dict[str, dict[Any, list[int]]] = {}
    for row, fields in enumerate(passages):
        for name, value in fields.items():
            for each in dict.fromkeys(value) if isinstance(value, list) else (value,):
                holders.setdefault(name, {}).setdefault(each, []).append(row)
    tensors: dict[str, Tensor] = {}
    for name, found in holders.items():
        values = sorted(found)
        starts = np.cumsum([0, *(len(found[value]) for value in values)])
        rows = np.fromiter(chain.from_iterable(found[value] for value in values), np.int32, int(starts[-1]))
        parts = {"starts": starts, "rows": rows, **_stored(values)}
        tensors |= {f"{part}/{name}": torch.from_numpy(array) for part, array in parts.items()}
    return tensors


def read_columns(path: Path, kinds: Mapping[str, str]) -> dict[str, Column]:
    """The columns of a segment's file by field.

    Args:
        kinds: of all fields of the index; the segment may lack some.

    Raises:
        FormatError: for other fields, or tensors that do not fit.
    """
    names = [name.removeprefix("rows/") for name in tensor_names(path) if name.startswith("rows/")]
    if unknown := set(names) - kinds.keys():
        raise FormatError(f"{path}: expected fields of the manifest, got {sorted(unknown)!r:.200}")
    whole = (None, torch.int64)
    expected: dict[str, tuple[Any, ...]] = {}
    for name in names:
        expected |= {f"starts/{name}": whole, f"rows/{name}": (None, torch.int32)}
        if kinds[name] == TEXT:
            expected |= {f"offsets/{name}": whole, f"bytes/{name}": (None, torch.uint8)}
        else:
            expected[f"values/{name}"] = (None, torch.float64)
    arrays = {name: tensor.numpy() for name, tensor in read_tensors(path, expected).items()}
    columns = {}
    for name in names:
        values = _read(arrays, name, kinds[name])
        columns[name] = Column(values, arrays[f"starts/{name}"], arrays[f"rows/{name}"])
        if len(columns[name].starts) != len(values) + 1:
            raise FormatError(f"{path}: {name}: {len(values)} values and {len(columns[name].starts)} starts do not fit")
    return columns


def _stored(values: Sequence[Any]) -> dict[str, NDArray[Any]]:
    if not isinstance(values[0], str):
        return {"values": np.array(values, np.float64)}
    encoded = [value.encode("utf-8", "surrogatepass") for value in values]
    # A copy, since torch wants to be able to write.
    joined = np.frombuffer(b"".join(encoded), np.uint8).copy()
    return {"offsets": np.cumsum([0, *map(len, encoded)]), "bytes": joined}


def _read(arrays: Mapping[str, NDArray[Any]], name: str, kind: str) -> Values:
    if kind != TEXT:
        numbers = arrays[f"values/{name}"]
        return Values(len(numbers), lambda number: numbers[number].item())
    offsets, joined = arrays[f"offsets/{name}"], arrays[f"bytes/{name}"]

    def text(number: int) -> str:
        return joined[offsets[number] : offsets[number + 1]].tobytes().decode("utf-8", "surrogatepass")

    return Values(len(offsets) - 1, text)
