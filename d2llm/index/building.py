"""Steps of writing an index: what its manifest will say, and making segments its newest state."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from d2llm.errors import FormatError, InputError, MissingError
from d2llm.files import atomic_path
from d2llm.index.inputs import Corpus
from d2llm.index.manifest import Manifest
from d2llm.index.model import Model, fingerprint_of, head_of, save_head, weights_digest, width
from d2llm.index.records import FileRecord
from d2llm.index.segment import DTYPES, Passage
from d2llm.index.snapshot import Snapshot, save_deleted
from d2llm.index.writer import collect, write_shards
from d2llm_kernels import IEM


def plan(model: Model, dtype: str, texts: bool, unit: bool, fields: dict[str, str]) -> Manifest:
    """The manifest of an index still without passages; the head is named, not yet written."""
    if dtype not in DTYPES:
        raise InputError(f"dtype: expected one of {tuple(DTYPES)}, got {dtype!r}")
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
        fields=fields,
        head=FileRecord(f"head-{weights_digest(head)}.safetensors", 0, ""),
        segments=(),
    )


def add(
    root: Path, layout: Manifest, model: Model, parts: dict[str, Corpus], batch_size: int | None, progress: bool
) -> None:
    """Write shards behind the segments that ``layout`` has, then make it the state of the index."""
    added = write_shards(root, layout, model, parts, batch_size=batch_size, progress=progress)
    manifest = replace(layout, segments=layout.segments + added)
    manifest.save(root)
    collect(root, manifest)


def changed(corpus: Corpus, taken: Mapping[str, int], snapshot: Snapshot) -> tuple[Corpus, list[int]]:
    """The passages that are not in the index as they are, and positions of those that they replace.

    Args:
        taken: positions of the ids that the index holds.
    """

    def as_it_is(passage: Passage) -> bool:
        same = corpus.vectors is None and passage.text is not None and passage.id in taken
        return same and snapshot.passage(taken[passage.id]) == passage

    some = [passage for passage in corpus.passages if not as_it_is(passage)]
    return Corpus(some, corpus.vectors), [taken[passage.id] for passage in some if passage.id in taken]


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


def same(old: Manifest, new: Manifest, names: list[str]) -> bool:
    """Whether the finished index is what the new build would give."""
    settings = [(m.model, m.dim, m.hidden, m.dtype, m.texts, m.unit, m.lookup, m.head.name) for m in (old, new)]
    return settings[0] == settings[1] and [s.name for s in old.segments] == names and old.deleted is None


def write_head(root: Path, layout: Manifest, head: IEM) -> FileRecord:
    """Write the head; its name comes from its content, so a rebuild never touches one in use."""
    with atomic_path(root / layout.head.name) as scratch:
        save_head(head, scratch)
    return FileRecord.of(root / layout.head.name)
