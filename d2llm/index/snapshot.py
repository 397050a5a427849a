"""One state of an index, opened for reading."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar, overload

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from d2llm.bm25 import BM25
from d2llm.errors import FormatError, InputError, MissingError
from d2llm.files import atomic_path
from d2llm.index.covering import Certified, Covering
from d2llm.index.manifest import Manifest
from d2llm.index.records import FileRecord
from d2llm.index.segment import DTYPES, Passage, Segment
from d2llm.index.writer import SEGMENTS
from d2llm.postings import keys_of
from d2llm.tensor_files import write_tensors
from d2llm_kernels import IEM
from d2llm_kernels.rough.rows import Rows
from d2llm_kernels.rough.search import Search
from d2llm_kernels.rough.taking import Chunked, widened

_Result = TypeVar("_Result")


def of_newest(root: Path, read: Callable[[Manifest], _Result]) -> _Result:
    """What ``read`` makes of the newest manifest, read once more for as long as writers replace it meanwhile.

    A writer removes the files of the state before, or puts others in their place, while ``read`` is at them.
    """
    while True:
        manifest = Manifest.load(root)
        try:
            return read(manifest)
        except (OSError, RuntimeError, MissingError, FormatError):
            if Manifest.load(root) == manifest:
                raise


class Snapshot:
    """The passages of one manifest by position: 0 is the first ever added, deleted ones keep theirs.

    Args:
        root: folder of the index.
        manifest: the state.
        before: an earlier state, whose segments are taken over where this one has them: they never change.
        part: of the segments, those that are opened; positions count within them.

    Raises:
        MissingError, FormatError: for a file that is gone, or not as recorded.
    """

    def __init__(
        self, root: Path, manifest: Manifest, before: "Snapshot | None" = None, part: slice = slice(None)
    ) -> None:
        manifest.head.check(root)
        first = sum(segment.rows for segment in manifest.segments[: part.start or 0])
        deleted = _load_deleted(root, manifest)
        #: The surrogate and what it promises.
        self.surrogate: tuple[Covering, Certified] | None = _load_surrogate(root, manifest, part)
        self.manifest = manifest = replace(manifest, segments=manifest.segments[part])
        opened = {} if before is None else {segment.record: segment for segment in before.segments}
        self.segments: list[Segment] = [
            opened.get(record)
            or Segment(
                root / SEGMENTS,
                record,
                hidden=manifest.hidden,
                dim=manifest.dim,
                dtype=manifest.dtype,
                unit=manifest.unit,
                texts=manifest.texts,
                fields=manifest.fields,
            )
            for record in manifest.segments
        ]
        rows = torch.tensor([0, *(segment.rows for segment in self.segments)])
        #: Position at which each segment starts, then the end.
        self.starts: Tensor = rows.cumsum(0)
        self.deleted: Tensor = deleted[first : first + manifest.rows]
        self.size = manifest.rows - int(self.deleted.sum())
        self._prepared: dict[int, Search] = {}
        self._candidates: dict[tuple[str, int, float], int | None] = {}

    @classmethod
    def open(cls, root: Path) -> "Snapshot":
        """The newest state on disk.

        Raises:
            MissingError, FormatError: for an index that is incomplete or altered.
        """
        return of_newest(root, lambda manifest: cls(root, manifest))

    @cached_property
    def live(self) -> Tensor:
        """Positions (N,) int64 of the passages that are not deleted, ascending."""
        return self.deleted.logical_not().nonzero().squeeze(1)

    def ids(self) -> Iterator[str]:
        """Every live id, by position."""
        every = (passage.id for segment in self.segments for passage in segment.passages())
        return (name for name, gone in zip(every, self.deleted.tolist(), strict=True) if not gone)

    def find(self, names: Sequence[str]) -> dict[str, int]:
        """Positions of those ids that are live; of the texts only lines with such ids are read."""
        wanted, found = keys_of(names), {}
        known = set(names)
        for segment, start in zip(self.segments, self.starts[:-1].tolist(), strict=True):
            for row in np.flatnonzero(np.isin(segment.keys, wanted)).tolist():
                name = segment.passage(row).id
                # Two ids may share a key.
                if name in known and not self.deleted[start + row]:
                    found[name] = start + row
        return found

    @property
    def has_terms(self) -> bool:
        """Whether there are terms of texts, which BM25 needs."""
        return self.manifest.texts and self.manifest.lookup

    @cached_property
    def bm25(self) -> BM25:
        """BM25 over the texts of the live passages, by position.

        Raises:
            InputError: if the index holds no terms.
        """
        if not self.has_terms:
            had = "from vectors alone" if not self.manifest.texts else "by an older version; build it again"
            raise InputError(f"mode: 'bm25' and 'hybrid' need the terms of texts, and this index was built {had}")
        parts = [segment.postings for segment in self.segments if segment.postings is not None]
        return BM25.over(parts, None if self.size == self.manifest.rows else self.deleted.logical_not().numpy())

    def passage(self, position: int) -> Passage:
        """The passage at a position."""
        segment = int(torch.searchsorted(self.starts, position, right=True)) - 1
        return self.segments[segment].passage(position - int(self.starts[segment]))

    @cached_property
    def projected(self) -> Chunked:
        """The projected passages, any of which may be taken by position."""
        return Chunked([segment.projected for segment in self.segments])

    @cached_property
    def unit(self) -> Chunked:
        """The unit vectors, where they are kept."""
        return Chunked([segment.unit for segment in self.segments if segment.unit is not None])

    def prepared(self, head: IEM, task: int) -> Search:
        """A branch of the index's interaction module, made ready at first use."""
        if task not in self._prepared:
            self._prepared[task] = head.prepare(task, DTYPES[self.manifest.dtype])
        return self._prepared[task]

    def candidates(self, mode: str, k: int, recall: float) -> int | None:
        """What the surrogate's certificate says for a mode, looked up once."""
        asked = mode, k, recall
        if asked not in self._candidates and self.surrogate is not None:
            self._candidates[asked] = self.surrogate[1].modes[mode].candidates(k, recall, self.deleted)
        return self._candidates.get(asked)

    def chunks(self, stored: str, among: Tensor) -> "Chunks":
        """What is stored, ``"projected"`` or ``"unit"``, of the passages at ascending positions."""
        kept = torch.zeros(self.manifest.rows, dtype=torch.bool)
        kept[among] = True
        return Chunks([getattr(segment, stored) for segment in self.segments], kept)

    def gather(self, positions: Tensor, stored: str = "projected") -> Tensor:
        """What is stored, ``"projected"`` (C, F) or ``"unit"`` (C, D), floating, at ascending positions (C,)."""
        return widened(getattr(self, stored).take(positions))


class Chunks(Sequence[Rows]):
    """Rows that are kept, a segment a chunk; where some are not, a copy of the others, made when asked for."""

    def __init__(self, segments: Sequence[Rows], kept: Tensor) -> None:
        self._segments = segments
        self._kept = kept.split([len(rows) for rows in segments])

    def __len__(self) -> int:
        return len(self._segments)

    @overload
    def __getitem__(self, number: int) -> Rows: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[Rows]: ...
    def __getitem__(self, number: int | slice) -> Rows | Sequence[Rows]:
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(len(self)))]
        rows, kept = self._segments[number], self._kept[number]
        return rows if bool(kept.all()) else rows[kept.nonzero().squeeze(1)]

    def __iter__(self) -> Iterator[Rows]:
        """Every chunk, with a bar if it takes long."""
        return (self[number] for number in tqdm(range(len(self)), desc="search", unit="chunk", delay=2))


def save_deleted(root: Path, deleted: Tensor, generation: int) -> FileRecord:
    """Write which positions are deleted: a (N,) bool tensor, under a name of its own for each generation."""
    path = root / f"deleted-{generation:06d}.safetensors"
    with atomic_path(path) as scratch:
        write_tensors({"deleted": deleted}, scratch)
    return FileRecord.of(path)


def _load_surrogate(root: Path, manifest: Manifest, part: slice) -> tuple[Covering, Certified] | None:
    """The surrogate, its small files compared by SHA-256 and the others by size."""
    record = manifest.surrogate
    if record is None:
        return None
    folder = root / record.name
    for file in record.files[:2]:
        file.check(folder)
    for file in record.files[2:]:
        file.check_size(folder)
    if record.engine is not None:
        record.engine.check_size(folder)
    covered = manifest.segments[: len(record.files) - 2]
    return Covering.open(folder, covered, manifest.hidden, record.engine, part)


def _load_deleted(root: Path, manifest: Manifest) -> Tensor:
    """(rows,) bool; passages appended after the file was written are not deleted."""
    deleted = torch.zeros(manifest.rows, dtype=torch.bool)
    if manifest.deleted is not None:
        manifest.deleted.check(root)
        path = root / manifest.deleted.name
        try:
            known = load_file(path)["deleted"]
        except (SafetensorError, KeyError) as error:
            raise FormatError(f"{path}: not a list of deletions ({error})") from None
        deleted[: len(known)] = known
    return deleted
