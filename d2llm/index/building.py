"""Steps of writing an index: what its manifest will say, and making segments its newest state."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

from d2llm.errors import FormatError, InputError, MissingError
from d2llm.files import atomic_path
from d2llm.index.intake import Intake, cut
from d2llm.index.manifest import Manifest
from d2llm.index.model import Model, check_windows, fingerprint_of, head_of, save_head, weights_digest, width
from d2llm.index.records import FileRecord
from d2llm.index.segment import DTYPES
from d2llm.index.snapshot import Snapshot, save_deleted
from d2llm.index.writer import write_shards
from d2llm_kernels import IEM


def plan(model: Model, dtype: str, texts: bool, unit: bool, windows: bool) -> Manifest:
    """The manifest of an index still without passages; the head is named, not yet written."""
    if dtype not in DTYPES:
        raise InputError(f"dtype: expected one of {tuple(DTYPES)}, got {dtype!r}")
    if windows:
        check_windows(model)
    head = head_of(model)
    return Manifest(
        generation=0,
        model=fingerprint_of(model),
        dim=width(head),
        hidden=head.linear1.out_features,
        dtype=dtype,
        texts=texts,
        unit=unit,
        lookup=True,
        fields={},
        head=FileRecord(f"head-{weights_digest(head)}.safetensors", 0, ""),
        segments=(),
        windows=windows,
    )


def add(
    root: Path, layout: Manifest, model: Model, intake: Intake, shard_size: int, batch_size: int | None, progress: bool
) -> Manifest:
    """Write shards behind the segments that ``layout`` has; the manifest that says so, not yet saved."""
    parts, total = cut(intake, shard_size), intake.total
    added = write_shards(root, layout, model, parts, batch_size=batch_size, progress=progress, total=total)
    return replace(layout, segments=layout.segments + added, fields=intake.fields)


def without(root: Path, snapshot: Snapshot, positions: Sequence[int]) -> Manifest:
    """The manifest of the next state, where passages at these positions are deleted; not yet saved."""
    generation = snapshot.manifest.generation + 1
    layout = replace(snapshot.manifest, generation=generation)
    if not positions:
        return layout
    deleted = snapshot.deleted.clone()
    deleted[list(positions)] = True
    return replace(layout, deleted=save_deleted(root, deleted, generation))


def existing(root: Path, overwrite: bool) -> Manifest | None:
    """The manifest of an index at ``root``, None where there is none, or none worth keeping."""
    try:
        return Manifest.load(root)
    except MissingError:
        return None
    except FormatError:
        if overwrite:
            return None
        raise


def same(old: Manifest, new: Manifest, names: Iterable[str]) -> bool:
    """Whether the finished index is what the new build would give; of the names no more are taken than that needs."""
    settings = [
        (m.model, m.dim, m.hidden, m.dtype, m.texts, m.unit, m.lookup, m.windows, m.head.name) for m in (old, new)
    ]
    pairs = zip_longest((segment.name for segment in old.segments), names)
    return settings[0] == settings[1] and old.deleted is None and all(a == b for a, b in pairs)


def write_head(root: Path, layout: Manifest, head: IEM) -> FileRecord:
    """Write the head; its name comes from its content, so a rebuild never touches one in use."""
    with atomic_path(root / layout.head.name) as scratch:
        save_head(head, scratch)
    return FileRecord.of(root / layout.head.name)
