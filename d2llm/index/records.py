"""What the index writes down about its files: names, sizes, digests, and how such records are read back.

A record is not trusted: each name is that of a file in its own folder, so that nothing outside the index is ever
opened, written or removed because a record says so.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from d2llm.errors import FormatError, MissingError
from d2llm.files import json_text, sha256

#: Files of a segment.
VECTORS, PASSAGES, LOOKUP, RECORD = "vectors.safetensors", "passages.jsonl", "lookup.safetensors", "segment.json"
METADATA = "metadata.safetensors"
#: Files of a surrogate, beside one for each segment.
MAPS, CERTIFICATE = "maps.safetensors", "certificate.safetensors"
#: File of a surrogate's engine.
ENGINE = r"(flat|ivf|hnsw)\.faiss"
#: Names of heads, deletions, segments and surrogates.
HEAD, DELETED = r"head-\w+\.safetensors", r"deleted-\d+\.safetensors"
SEGMENT, SURROGATE = r"segment-[0-9a-f]+", r"surrogate-[0-9a-f]+"


def field(values: Any, name: str, kind: type[Any], where: str, pattern: str = "") -> Any:
    """The value of a field of a JSON object.

    Args:
        kind: its type; whole numbers are not negative.
        pattern: what a text must match as a whole.

    Raises:
        FormatError: naming ``where`` and the field, if it is absent or another kind of thing.
    """
    found: Any = values.get(name) if isinstance(values, Mapping) else None
    # To Python a bool is an int too.
    fits = type(found) is kind and (kind is not int or found >= 0) and (not pattern or re.fullmatch(pattern, found))
    if not fits:
        expected = (
            f"a text like {pattern}" if pattern else {int: "a whole number", bool: "true or false"}.get(kind, kind)
        )
        raise FormatError(f"{where}: {name}: expected {expected}, got {found!r:.200}")
    return found


@dataclass(frozen=True)
class FileRecord:
    """Name, size and digest of a file of the index."""

    name: str
    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "FileRecord":
        """Measure a file."""
        return cls(path.name, path.stat().st_size, sha256(path))

    @classmethod
    def from_json(cls, value: Any, pattern: str, where: str) -> "FileRecord":
        """Inverse of ``dataclasses.asdict``, for a file whose name matches ``pattern``.

        Raises:
            FormatError: naming ``where`` and the field that does not fit.
        """
        name = field(value, "name", str, where, pattern)
        return cls(name, field(value, "bytes", int, where), field(value, "sha256", str, where, "[0-9a-f]{64}"))

    def check_size(self, folder: Path) -> None:
        """Compare the file's size with the record.

        Raises:
            MissingError: if the file is gone.
            FormatError: if its size differs.
        """
        path = folder / self.name
        if not path.is_file():
            raise MissingError(f"{path}: file not found")
        if (size := path.stat().st_size) != self.bytes:
            raise FormatError(f"{path}: expected {self.bytes} bytes, got {size}; the file is truncated or altered")

    def check(self, folder: Path) -> None:
        """Compare the file's size and SHA-256 with the record.

        Raises:
            MissingError: if the file is gone.
            FormatError: if it differs.
        """
        self.check_size(folder)
        if sha256(folder / self.name) != self.sha256:
            raise FormatError(f"{folder / self.name}: SHA-256 differs from the record; the file is altered")


@dataclass(frozen=True)
class SegmentRecord:
    """What the manifest knows of a segment."""

    name: str
    rows: int
    files: tuple[FileRecord, ...]

    @classmethod
    def from_json(cls, value: Any, where: str) -> "SegmentRecord":
        """Inverse of ``dataclasses.asdict``.

        Raises:
            FormatError: naming ``where`` and the field that does not fit.
        """
        name, rows, files = (
            field(value, "name", str, where, SEGMENT),
            field(value, "rows", int, where),
            value.get("files"),
        )
        if not isinstance(files, list) or not 2 <= len(files) <= 4:
            raise FormatError(f"{where}: files: expected two to four, got {files!r:.200}")
        patterns = map(re.escape, (VECTORS, PASSAGES, LOOKUP, METADATA))
        # Older indices have no file for looking up, and many segments no metadata; zip ends with the files.
        return cls(name, rows, tuple(FileRecord.from_json(*each, where) for each in zip(files, patterns, strict=False)))

    @property
    def lookup(self) -> bool:
        """Whether it has a file for looking up ids and terms."""
        return len(self.files) > 2

    @property
    def metadata(self) -> bool:
        """Whether it has a file with columns of metadata."""
        return len(self.files) > 3

    def check(self, root: Path) -> None:
        """Compare every file of the segment below ``root`` with its size and SHA-256."""
        self.check_copy(root)
        for file in self.files:
            file.check(root / self.name)

    def check_copy(self, root: Path) -> None:
        """Compare the record that lies beside the segment's files with this one, byte by byte.

        Raises:
            MissingError: if it is gone.
            FormatError: if it differs.
        """
        path = root / self.name / RECORD
        if not path.is_file():
            raise MissingError(f"{path}: file not found")
        if path.read_bytes() != json_text(asdict(self)).encode():
            raise FormatError(f"{path}: differs from the manifest; the file is altered")


@dataclass(frozen=True)
class SurrogateRecord:
    """What the manifest knows of a surrogate: its maps, its certificate, and a file for each of the first segments.

    ``engine`` is the file of what finds candidates, where that is not a scan of those.
    """

    name: str
    files: tuple[FileRecord, ...]
    engine: FileRecord | None = None

    @staticmethod
    def names(segments: Sequence[SegmentRecord]) -> list[str]:
        """Names of the files, where it covers these segments."""
        return [MAPS, CERTIFICATE, *(f"{segment.name}.safetensors" for segment in segments)]

    @classmethod
    def from_json(cls, value: Any, segments: Sequence[SegmentRecord], where: str) -> "SurrogateRecord":
        """Inverse of ``dataclasses.asdict``, in the manifest of an index of these segments.

        Raises:
            FormatError: naming ``where`` and the field that does not fit.
        """
        name, files = field(value, "name", str, where, SURROGATE), value.get("files")
        patterns = [re.escape(each) for each in cls.names(segments)]
        if not isinstance(files, list) or not 3 <= len(files) <= len(patterns):
            raise FormatError(f"{where}: files: expected 3 to {len(patterns)}, got {files!r:.200}")
        # Older manifests know of no engine.
        engine = value.get("engine")
        return cls(
            name,
            tuple(FileRecord.from_json(*each, where) for each in zip(files, patterns, strict=False)),
            None if engine is None else FileRecord.from_json(engine, ENGINE, f"{where}: engine"),
        )

    def check(self, root: Path) -> None:
        """Compare every file below ``root`` with its size and SHA-256."""
        for file in [*self.files, *([self.engine] if self.engine else [])]:
            file.check(root / self.name)
