"""One immutable segment: a folder with the vectors and the texts of some passages.

``vectors.safetensors`` holds ``projected`` (n, F), the passages behind IEM's first layer; in int8 also
``scale`` (n,) and ``centre`` (F,) float32, so that they are projected * scale + centre; ``unit``
(n, D) float16, their unit vectors, where the index keeps them; and ``offsets`` (n + 1,) int64,
where each line of ``passages.jsonl`` ({"id": ..., "text": ...}) starts. ``segment.json`` records
the size and SHA-256 of the others. All is mapped, nothing is read before it is asked for.

``lookup.safetensors`` holds ``keys`` (n,) int64, a number for each id, and where there are texts the arrays of their
``Postings``, for BM25. Segments of older indices have no such file.

``metadata.safetensors``, where a passage of the segment has metadata, holds it as ``columns`` do, for filters; to be
shown it stands in ``passages.jsonl``.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from d2llm.bm25 import tokenize
from d2llm.errors import FormatError, MissingError
from d2llm.files import atomic_path, read_json, write_json
from d2llm.index.columns import Column, read_columns, tensors_of
from d2llm.index.records import LOOKUP, METADATA, PASSAGES, RECORD, VECTORS, FileRecord, SegmentRecord
from d2llm.metadata import Metadata
from d2llm.postings import Postings, keys_of
from d2llm.tensor_files import read_tensors, write_tensors
from d2llm_kernels.rough.rows import Int8Rows, Rows

#: Number types that projected passages are stored in.
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32, "int8": torch.int8}


class Passage(NamedTuple):
    """A passage as it is shown; ``text`` is None in an index of vectors alone."""

    id: str
    text: str | None
    metadata: Metadata


def write_segment(
    folder: Path, projected: Rows, unit: Tensor | None, passages: Sequence[Passage], *, lookup: bool
) -> SegmentRecord:
    """Write a segment as a whole or not at all.

    Args:
        projected: n rows as they are to be stored.
        unit: (n, D) float16, or None.
        passages: n, all with texts or none; metadata is checked before.
        lookup: whether to write the file that ids and terms are looked up in.

    Raises:
        OSError: if the disk fills.
    """
    with atomic_path(folder) as scratch:
        scratch.mkdir()
        offsets = [0]
        with open(scratch / PASSAGES, "wb") as handle:
            for passage in passages:
                row = {name: value for name, value in passage._asdict().items() if value is not None and value != {}}
                # A lone surrogate has no UTF-8 form; ASCII escapes keep every Python string.
                handle.write(json.dumps(row).encode("ascii") + b"\n")
                offsets.append(handle.tell())
        if isinstance(projected, Int8Rows):
            tensors = {"projected": projected.values, "scale": projected.scale, "centre": projected.centre}
        else:
            tensors = {"projected": projected.contiguous()}
        tensors["offsets"] = torch.tensor(offsets, dtype=torch.int64)
        if unit is not None:
            tensors["unit"] = unit.contiguous()
        write_tensors(tensors, scratch / VECTORS)
        names = [VECTORS, PASSAGES]
        if lookup:
            names.append(LOOKUP)
            write_tensors(_lookup(passages), scratch / LOOKUP)
        if columns := tensors_of([passage.metadata for passage in passages]):
            names.append(METADATA)
            write_tensors(columns, scratch / METADATA)
        record = SegmentRecord(folder.name, len(passages), tuple(FileRecord.of(scratch / name) for name in names))
        write_json(scratch / RECORD, asdict(record))
    return record


def _lookup(passages: Sequence[Passage]) -> dict[str, Tensor]:
    """What ids and terms are looked up in."""
    arrays = {"keys": keys_of([passage.id for passage in passages])}
    texts = [passage.text for passage in passages if passage.text is not None]
    if texts:
        arrays |= vars(Postings.of(map(tokenize, texts)))
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def finished_segment(folder: Path, rows: int) -> SegmentRecord | None:
    """The record of a whole segment of ``rows`` passages left by an earlier run, or None where none is fit for use."""
    try:
        record = SegmentRecord.from_json(read_json(folder / RECORD), str(folder / RECORD))
        if (record.name, record.rows) != (folder.name, rows):
            return None
        record.check(folder.parent)
    except (FormatError, MissingError):
        return None
    return record


class Segment:
    """A segment opened for reading.

    Args:
        root: folder that holds the segment's folder.
        record: the segment's entry in the manifest.
        hidden: F. dim: D. dtype: name of the stored dtype. unit, texts: whether unit vectors and texts
            must be there. fields: the kind of each field of metadata.

    Raises:
        MissingError: if a file is gone.
        FormatError: if a file has another size, header or shape than recorded.
    """

    def __init__(
        self,
        root: Path,
        record: SegmentRecord,
        *,
        hidden: int,
        dim: int,
        dtype: str,
        unit: bool,
        texts: bool,
        fields: Mapping[str, str],
    ) -> None:
        self.record = record
        self.folder = root / record.name
        self.rows = record.rows
        record.check_copy(root)
        for file in record.files:
            file.check_size(self.folder)
        path = self.folder / VECTORS
        expected: dict[str, tuple[Any, ...]] = {
            "projected": (self.rows, hidden, DTYPES[dtype]),
            "offsets": (self.rows + 1, torch.int64),
        }
        if dtype == "int8":
            expected |= {"scale": (self.rows, torch.float32), "centre": (hidden, torch.float32)}
        if unit:
            expected["unit"] = (self.rows, dim, torch.float16)
        tensors = read_tensors(path, expected)
        self.projected: Rows = tensors["projected"]
        if dtype == "int8":
            self.projected = Int8Rows(tensors["projected"], tensors["scale"], tensors["centre"])
        self.unit: Tensor | None = tensors.get("unit")
        self._offsets: Tensor = tensors["offsets"]
        #: The terms of the texts, where they are kept.
        self.postings: Postings | None = None
        self._keys: NDArray[np.int64] | None = None
        if record.lookup:
            self._read_lookup(texts)
        #: The fields of metadata that its passages have.
        self.columns: dict[str, Column] = {}
        if record.metadata:
            self.columns = read_columns(self.folder / METADATA, fields)
        # Unlike mmap.mmap, this mapping keeps no file descriptor open: an index may have thousands of segments.
        size = next(file.bytes for file in record.files if file.name == PASSAGES)
        self._passages = torch.from_file(str(self.folder / PASSAGES), shared=False, size=size, dtype=torch.uint8)

    @property
    def keys(self) -> NDArray[np.int64]:
        """A number for each id (n,), from ``keys_of``."""
        if self._keys is None:
            self._keys = keys_of([passage.id for passage in self.passages()])
        return self._keys

    def passage(self, row: int) -> Passage:
        """The passage of a row.

        Raises:
            FormatError: if the line is damaged.
        """
        start, end = self._offsets[row : row + 2].tolist()
        return self._parse(self._passages[start:end].numpy().tobytes(), row)

    def passages(self) -> Iterator[Passage]:
        """Every passage, in order; the segment's file is read at once.

        Raises:
            FormatError: if a line is damaged.
        """
        content, offsets = self._passages.numpy().tobytes(), self._offsets.tolist()
        return (self._parse(content[offsets[row] : offsets[row + 1]], row) for row in range(self.rows))

    def _read_lookup(self, texts: bool) -> None:
        path = self.folder / LOOKUP
        expected: dict[str, tuple[Any, ...]] = {"keys": (self.rows, torch.int64)}
        if texts:
            expected |= {"lengths": (self.rows, torch.int32), "terms": (None, torch.int64)}
            expected |= {"starts": (None, torch.int64), "rows": (None, torch.int32), "counts": (None, torch.int16)}
        arrays = {name: tensor.numpy() for name, tensor in read_tensors(path, expected).items()}
        self._keys = arrays.pop("keys")
        if texts:
            self.postings = Postings(**arrays)
            terms, starts, rows, counts = (len(arrays[name]) for name in ("terms", "starts", "rows", "counts"))
            if starts != terms + 1 or rows != counts:
                raise FormatError(f"{path}: {terms} terms, {starts} starts, {rows} rows and {counts} counts do not fit")

    def _parse(self, line: bytes, row: int) -> Passage:
        try:
            value = json.loads(line)
            return Passage(value["id"], value.get("text"), value.get("metadata", {}))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FormatError(f"{self.folder / PASSAGES}: line {row + 1} is damaged ({error})") from None
