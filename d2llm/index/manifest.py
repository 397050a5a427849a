"""The manifest: the one small file that says what an index consists of, replaced as a whole."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from d2llm.errors import FormatError, MissingError
from d2llm.files import read_json, write_json
from d2llm.index.records import DELETED, HEAD, FileRecord, SegmentRecord, SurrogateRecord, field
from d2llm.index.segment import DTYPES
from d2llm.metadata import KINDS

NAME = "manifest.json"
FORMAT, VERSION = "d2llm-index", 4
_NULLABLE = {"deleted", "surrogate", "bm25_weight"}


@dataclass(frozen=True)
class Manifest:
    """Everything that identifies one state of an index.

    ``generation`` grows by one with every change. ``model`` is the fingerprint of the model that
    encoded the passages. ``texts``, ``unit`` and ``lookup`` say whether segments hold texts, unit vectors, and the file
    that ids and terms are looked up in, which version 1 of the format did not have. ``fields`` has the kind of each
    field of metadata, which version 2 did not have. ``surrogate`` covers the first segments. ``bm25_weight`` is what
    BM25 weighs in a hybrid search, None for what the model says. ``windows`` says whether texts beyond the model's
    limit are encoded as a whole, which version 3 did not have.
    """

    generation: int
    model: str
    dim: int
    hidden: int
    dtype: str
    texts: bool
    unit: bool
    lookup: bool
    fields: dict[str, str]
    head: FileRecord
    segments: tuple[SegmentRecord, ...]
    deleted: FileRecord | None = None
    surrogate: SurrogateRecord | None = None
    bm25_weight: float | None = None
    windows: bool = False

    @property
    def rows(self) -> int:
        """Passages ever added, deleted ones included."""
        return sum(segment.rows for segment in self.segments)

    def save(self, root: Path) -> None:
        """Replace the manifest of the index at ``root``, atomically."""
        body = {"format": FORMAT, "version": VERSION, **asdict(self)}
        write_json(root / NAME, {**body, "sha256": _digest(body)})

    @classmethod
    def load(cls, root: Path) -> "Manifest":
        """Read and check the manifest of the index at ``root``.

        Raises:
            MissingError: if there is none.
            FormatError: if it is damaged, or of another format or version.
        """
        path = root / NAME
        if not path.is_file():
            raise MissingError(f"{path}: file not found; {root} is no index, or its build has not finished")
        body = read_json(path)
        if not isinstance(body, dict) or body.get("format") != FORMAT:
            raise FormatError(f"{path}: expected the format {FORMAT!r}")
        if type(body.get("version")) is not int or not 1 <= body["version"] <= VERSION:
            raise FormatError(f"{path}: expected a version from 1 to {VERSION}, got {body.get('version')!r:.200}")
        if body.pop("sha256", None) != _digest(body):
            raise FormatError(f"{path}: SHA-256 differs from the record; the file is altered")
        if body["version"] == 1:
            body |= {"lookup": False, "surrogate": None}
        if body["version"] < 3:
            body |= {"fields": {}, "bm25_weight": None}
        if body["version"] < 4:
            body |= {"windows": False}
        return cls._from_json(body, str(path))

    @classmethod
    def _from_json(cls, body: dict[str, Any], where: str) -> "Manifest":
        if unknown := body.keys() - {"format", "version", *cls.__dataclass_fields__}:
            raise FormatError(f"{where}: expected no other fields, got {sorted(unknown)!r:.200}")
        if not isinstance(body.get("segments"), list) or not _NULLABLE <= body.keys():
            raise FormatError(f"{where}: segments, {', '.join(sorted(_NULLABLE))}: expected a list, records or null")
        segments = tuple(SegmentRecord.from_json(each, f"{where}: segments") for each in body["segments"])
        surrogate, weight = body["surrogate"], body["bm25_weight"]
        kinds = {
            "generation": int,
            "model": str,
            "dim": int,
            "hidden": int,
            "texts": bool,
            "unit": bool,
            "lookup": bool,
            "windows": bool,
            "fields": dict,
        }
        if unknown_kinds := set(map(str, field(body, "fields", dict, where).values())) - set(KINDS):
            raise FormatError(f"{where}: fields: expected {', '.join(KINDS)}, got {sorted(unknown_kinds)!r:.200}")
        return cls(
            **{name: field(body, name, kind, where) for name, kind in kinds.items()},
            dtype=field(body, "dtype", str, where, "|".join(DTYPES)),
            head=FileRecord.from_json(body.get("head"), HEAD, f"{where}: head"),
            segments=segments,
            deleted=FileRecord.from_json(body["deleted"], DELETED, f"{where}: deleted") if body["deleted"] else None,
            surrogate=SurrogateRecord.from_json(surrogate, segments, f"{where}: surrogate") if surrogate else None,
            bm25_weight=None if weight is None else field(body, "bm25_weight", float, where),
        )


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
