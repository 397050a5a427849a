"""One state of an index, opened for reading."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from d2llm.bm25 import BM25
from d2llm.errors import FormatError, InputError, MissingError
from d2llm.files import atomic_path
from d2llm.index.manifest import Manifest
from d2llm.index.ranking import Chunk, split
from d2llm.index.segment import FileRecord, Segment, write_tensors
from d2llm.index.stored import Int8Rows, Rows
from d2llm.index.writer import SEGMENTS


class Snapshot:
    """The passages of one manifest by position: 0 is the first ever added, deleted ones keep theirs.

    Raises:
        MissingError, FormatError: for a file that is gone, or not as recorded.
    """

    def __init__(self, root: Path, manifest: Manifest) -> None:
        self.manifest = manifest
        manifest.head.check_size(root)
        self.segments = [
            Segment(
                root / SEGMENTS,
                record,
                hidden=manifest.hidden,
                dim=manifest.dim,
                dtype=manifest.dtype,
                unit=manifest.unit,
            )
            for record in manifest.segments
        ]
        rows = torch.tensor([0, *(segment.rows for segment in self.segments)])
        #: Position at which each segment starts, then the end.
        self.starts: Tensor = rows.cumsum(0)
        self.deleted: Tensor = _load_deleted(root, manifest)
        self.size = manifest.rows - int(self.deleted.sum())

    @classmethod
    def open(cls, root: Path) -> "Snapshot":
        """The newest state on disk.

        Raises:
            MissingError, FormatError: for an index that is incomplete or altered.
        """
        while True:
            manifest = Manifest.load(root)
            try:
                return cls(root, manifest)
            except MissingError:
                # A writer may have replaced the manifest and removed the old files in between.
                if Manifest.load(root).generation == manifest.generation:
                    raise

    @cached_property
    def live(self) -> Tensor:
        """Positions (N,) int64 of the passages that are not deleted, ascending."""
        return self.deleted.logical_not().nonzero().squeeze(1)

    @cached_property
    def positions(self) -> dict[str, int]:
        """Position of every live id."""
        every = (name for segment in self.segments for name, _ in segment.passages())
        return {name: i for i, (name, gone) in enumerate(zip(every, self.deleted.tolist(), strict=True)) if not gone}

    @cached_property
    def bm25(self) -> BM25:
        """BM25 over the texts of the live passages, in the order of ``live``.

        Raises:
            InputError: if the index holds no texts.
        """
        if not self.manifest.texts:
            raise InputError("mode: 'bm25' needs texts, and this index was built from vectors alone")
        every = (text or "" for segment in self.segments for _, text in segment.passages())
        return BM25([text for text, gone in zip(every, self.deleted.tolist(), strict=True) if not gone])

    def passage(self, position: int) -> tuple[str, str | None]:
        """(id, text) at a position."""
        segment = int(torch.searchsorted(self.starts, position, right=True)) - 1
        return self.segments[segment].passage(position - int(self.starts[segment]))

    def chunks(self, stored: str) -> Iterator[Chunk]:
        """Live positions and what is stored of them, ``"projected"`` or ``"unit"``, in ascending order."""
        for segment, start in zip(self.segments, self.starts[:-1].tolist(), strict=True):
            vectors: Rows = getattr(segment, stored)
            rows = self.deleted[start : start + segment.rows].logical_not().nonzero().squeeze(1)
            yield from split(rows + start, vectors if len(rows) == segment.rows else vectors[rows])

    def gather(self, positions: Tensor) -> Tensor:
        """Projected passages (C, F), floating, at ascending positions (C,)."""
        cuts = torch.searchsorted(positions, self.starts).tolist()
        pieces = [
            segment.projected[positions[low:high] - start]
            for segment, start, low, high in zip(self.segments, self.starts[:-1], cuts[:-1], cuts[1:], strict=True)
            if low < high
        ]
        return torch.cat([piece.widened() if isinstance(piece, Int8Rows) else piece for piece in pieces])


def save_deleted(root: Path, deleted: Tensor, generation: int) -> FileRecord:
    """Write which positions are deleted: a (N,) bool tensor, under a name of its own for each generation."""
    path = root / f"deleted-{generation:06d}.safetensors"
    with atomic_path(path) as scratch:
        write_tensors({"deleted": deleted}, scratch)
    return FileRecord.of(path)


def _load_deleted(root: Path, manifest: Manifest) -> Tensor:
    """(rows,) bool; passages appended after the file was written are not deleted."""
    deleted = torch.zeros(manifest.rows, dtype=torch.bool)
    if manifest.deleted is not None:
        manifest.deleted.check_size(root)
        path = root / manifest.deleted.name
        try:
            known = load_file(path)["deleted"]
        except (SafetensorError, KeyError) as error:
            raise FormatError(f"{path}: not a list of deletions ({error})") from None
        deleted[: len(known)] = known
    return deleted
