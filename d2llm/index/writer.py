"""Writing segments so that a killed run loses only the shard it was at.

A segment is named by the digest of what it is made from: model, options, ids, texts, vectors. A run
that starts again with the same input finds the finished ones by name and encodes only the rest.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor
from tqdm import tqdm

from d2llm.errors import InputError
from d2llm.files import make_folder
from d2llm.index.inputs import Corpus, all_finite, check_vectors
from d2llm.index.manifest import Manifest
from d2llm.index.model import Model, encode, head_of, project
from d2llm.index.records import SegmentRecord
from d2llm.index.segment import DTYPES, finished_segment, write_segment
from d2llm_kernels.rough.rows import Int8Rows, Rows

SEGMENTS = "segments"
#: (I, N): which segments a process writes, every N-th from number I on, counted from 0.
Share = tuple[int, int]
WHOLE: Share = (0, 1)
# What a killed writer leaves of files that it was about to rename, beside those of segments.
_SCRATCH = (".head-*", ".deleted-*", ".surrogate-*", ".exact-*", ".manifest.json.*")
#: Seconds in which all processes that begin a share at once have taken their locks.
_PATIENCE = 10
#: Texts handed to the model at a time, unless it has ``texts_at_once``: enough to sort by length, few enough to see
#: progress.
_ENCODE = 1024


@contextmanager
def write_lock(root: Path) -> Iterator[None]:
    """Hold the index for writing; the system frees it if the process dies.

    Raises:
        InputError: if another process holds it or a share of it, or ``root`` is a file.
    """
    with _locks(root) as held:
        held.enter_context(FileLock(root / ".lock", blocking=False))
        for lock in root.glob(".share-*.lock"):
            held.enter_context(FileLock(lock, blocking=False))
        yield


@contextmanager
def share_lock(root: Path, share: Share) -> Iterator[None]:
    """Hold a share of an index for writing, beside the other shares; nobody holds the index itself meanwhile.

    Raises:
        InputError: as :func:`write_lock`.
    """
    with _locks(root) as held:
        with FileLock(root / ".lock", timeout=_PATIENCE):
            held.enter_context(FileLock(root / f".share-{share[0]}-of-{share[1]}.lock", blocking=False))
        yield


@contextmanager
def _locks(root: Path) -> Iterator[ExitStack]:
    if root.exists() and not root.is_dir():
        raise InputError(f"path: expected a folder or nothing, got a file at {root}")
    make_folder(root)
    try:
        with ExitStack() as held:
            yield held
    except Timeout:
        raise InputError(f"path: {root} is being written by another process") from None


def named(parts: Iterable[Corpus], manifest: Manifest) -> Iterator[tuple[str, Corpus]]:
    """Each shard with the name of its segment.

    Iterating raises:
        InputError: for NaN or infinity in the vectors.
    """
    options = [manifest.model, manifest.dim, manifest.hidden, manifest.dtype, manifest.unit, manifest.lookup]
    options += ["windows"] if manifest.windows else []
    first = 0
    for part in parts:
        digest = hashlib.sha256(json.dumps([*options, part.ids, part.texts or None]).encode())
        if any(passage.metadata for passage in part.passages):
            digest.update(json.dumps([passage.metadata for passage in part.passages]).encode())
        if part.vectors is not None:
            digest.update(check_vectors("vectors", part.vectors, manifest.dim, first).contiguous().numpy().tobytes())
        yield f"segment-{digest.hexdigest()[:16]}", part
        first += len(part)


def write_shards(
    root: Path,
    manifest: Manifest,
    model: Model,
    parts: Iterable[Corpus],
    *,
    batch_size: int | None,
    progress: bool,
    total: int | None,
    share: Share = WHOLE,
) -> tuple[SegmentRecord, ...]:
    """Write the segments of a share of the shards, those of an earlier run excepted, and return their records.

    Args:
        root: folder of the index.
        manifest: the model's sizes and the options.
        model: encodes the shards that come without vectors, projects all.
        parts: shards, each asked for when the one before is written.
        batch_size: most texts encoded at a time; None leaves it to their tokens.
        progress: show a bar.
        total: how many passages will come, for the bar, None where that is not known.
        share: which shards, all unless told otherwise.

    Raises:
        InputError: for vectors that cannot be stored, and what ``parts`` raise.
        OSError: if the disk fills; what was finished stays.
    """
    records = []
    with tqdm(total=total, desc="index", unit="passage", disable=not progress) as bar:
        for name, part in islice(named(parts, manifest), share[0], None, share[1]):
            folder = root / SEGMENTS / name
            record = finished_segment(folder, len(part))
            if record is None:
                vectors = _vectors(part, model, manifest, batch_size, bar)
                projected, unit = _stored(vectors, model, manifest)
                record = _write(folder, projected, unit, part, manifest.lookup)
            else:
                bar.update(len(part))
            records.append(record)
    return tuple(records)


def collect(root: Path, manifest: Manifest) -> None:
    """Remove what of ours the manifest does not name: files of earlier states, and of runs that were killed."""
    kept = {segment.name for segment in manifest.segments} | {manifest.head.name}
    kept |= {manifest.deleted.name} if manifest.deleted else set()
    kept |= {manifest.surrogate.name} if manifest.surrogate else set()
    ours = ("head-*.safetensors", "deleted-*.safetensors", "surrogate-*", "exact-*", *_SCRATCH)
    for path in [*(root / SEGMENTS).iterdir(), *(path for pattern in ours for path in root.glob(pattern))]:
        if path.name in kept:
            continue
        if path.is_dir():
            # A reader on a system that locks mapped files may still hold it; the next write tries again.
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _vectors(part: Corpus, model: Model, manifest: Manifest, batch_size: int | None, bar: Any) -> Tensor:
    """The vectors (n, D) float32 of one shard, given or encoded."""
    if part.vectors is not None:
        bar.update(len(part))
        return check_vectors("vectors", part.vectors, manifest.dim)
    pieces = []
    step = getattr(model, "texts_at_once", _ENCODE)
    for start in range(0, len(part), step):
        texts = part.texts[start : start + step]
        encoded = encode(model, texts, "passage", batch_size, manifest.windows)
        pieces.append(check_vectors("encoded passages", encoded, manifest.dim))
        bar.update(len(texts))
    return torch.cat(pieces)


@torch.inference_mode()
def _stored(vectors: Tensor, model: Model, manifest: Manifest) -> tuple[Rows, Tensor | None]:
    """(projected passages, unit vectors (n, D) float16 or None) as they go to the disk."""
    exact = project(head_of(model), vectors, "passage").cpu()
    rounded = exact if manifest.dtype == "int8" else exact.to(DTYPES[manifest.dtype])
    if not all_finite(rounded):
        raise InputError(
            f"dtype: {manifest.dtype!r} cannot hold projected values as large as {exact.abs().max():g}; try 'bfloat16'"
        )
    unit = torch.nn.functional.normalize(vectors, dim=1).half() if manifest.unit else None
    return Int8Rows.of(exact) if manifest.dtype == "int8" else rounded, unit


def _write(folder: Path, projected: Rows, unit: Tensor | None, part: Corpus, lookup: bool) -> SegmentRecord:
    try:
        return write_segment(folder, projected, unit, part.passages, lookup=lookup)
    except OSError as error:
        raise OSError(
            f"{folder}: could not be written ({error}); finished shards are kept, and the same call goes on from there"
        ) from error
