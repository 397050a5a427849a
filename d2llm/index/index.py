"""The public face of the index: build, open, search, append, delete, verify."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from d2llm.errors import FormatError, InputError, MismatchError, MissingError
from d2llm.files import atomic_path
from d2llm.index.inputs import Corpus, Passages, check_corpus, check_count, check_ids, check_vectors
from d2llm.index.manifest import Manifest
from d2llm.index.model import (
    Model,
    encode,
    fingerprint_of,
    head_of,
    load_head,
    project,
    save_head,
    weights_digest,
    width,
)
from d2llm.index.ranking import nearest
from d2llm.index.records import FileRecord
from d2llm.index.segment import DTYPES
from d2llm.index.snapshot import Snapshot, of_newest, save_deleted
from d2llm.index.writer import SEGMENTS, collect, shards, write_lock, write_shards
from d2llm.tasks import ASYM, task_index
from d2llm.texts import check_texts

MODES = ("exact", "bm25", "cosine")


@dataclass(frozen=True)
class Hit:
    """One passage found: its rank from 1, id, IEM logit (higher is better), and text where the index holds texts."""

    rank: int
    id: str
    score: float
    text: str | None


class Index:
    """A corpus on disk, searched by the interaction module (paper section 3, IEM).

    A passage is stored as F numbers, its half of IEM's first layer, so that a search costs 2F² FLOPs
    a pair and no encoding. Made by :meth:`build` or :meth:`open`. An open index keeps showing the
    state it was opened at; :meth:`append` and :meth:`delete` move it to the newest.
    """

    def __init__(self, path: Path, snapshot: Snapshot, model: Model | None) -> None:
        self.path = path
        self._snapshot = snapshot
        self._model = model
        self._head = load_head(path / snapshot.manifest.head.name) if model is None else head_of(model)

    @classmethod
    def build(
        cls,
        model: Model,
        passages: Passages | None,
        path: str | os.PathLike[str],
        *,
        ids: Sequence[str] | None = None,
        vectors: Any | None = None,
        dtype: str = "bfloat16",
        keep_vectors: bool = True,
        shard_size: int = 16384,
        batch_size: int | None = None,
        progress: bool = True,
        overwrite: bool = False,
    ) -> "Index":
        """Build an index from texts, or from vectors that the model made before.

        The index appears as a whole at the end. A build that was killed goes on where it stopped when
        called again with the same input; the same build of a finished index only opens it.

        Args:
            model: a D2LLM; with ``vectors`` given, a bare IEM will do.
            passages: N texts or (id, text) pairs; None with ``vectors`` gives an index without texts.
            path: folder of the index.
            ids: N distinct strings; by default "0", "1" and so on.
            vectors: (N, D) floating array, memory-mapped array or tensor; the texts are then not encoded.
            dtype: how the projected passages are stored, "bfloat16", "float16", "float32" or "int8". int8 takes half
                the room of bfloat16 and is searched faster on CPUs with VNNI; with the shipped student more than 99 of
                the exact 100 best are found.
            keep_vectors: store unit vectors too (D float16 a passage), for ``mode="cosine"``.
            shard_size: passages a segment, the most that a kill can lose.
            batch_size: most texts encoded at a time; None leaves it to their tokens.
            progress: show a progress bar.
            overwrite: replace an index of other content at ``path``; readers see the old one until the end.

        Raises:
            InputError: for an empty corpus, empty texts, repeated ids, NaN, a wrong shape, or an index
                of other content at ``path`` without ``overwrite``.
            OSError: if the disk fills; what was finished stays.
        """
        root, head = Path(path), head_of(model)
        corpus = check_corpus(passages, ids, vectors, width(head), first=0)
        check_count("shard_size", shard_size, 1)
        if batch_size is not None:
            check_count("batch_size", batch_size, 1)
        layout = _layout(model, dtype, texts=corpus.texts is not None, unit=keep_vectors)
        parts = shards(corpus, shard_size, layout)
        with write_lock(root):
            old = _existing(root, overwrite)
            if old is None or not _same(old, layout, list(parts)):
                if old is not None and not overwrite:
                    raise InputError(f"path: {root} holds an index of other content; pass overwrite=True to replace it")
                generation = old.generation + 1 if old else 0
                layout = replace(layout, generation=generation, head=_save_head(root, layout, head))
                _add(root, layout, model, parts, batch_size, progress)
        return cls(root, Snapshot.open(root), model)

    @classmethod
    def open(cls, path: str | os.PathLike[str], model: Model | None = None, *, verify: bool = False) -> "Index":
        """Open an index. Sizes and headers are checked; vectors and texts stay on disk until they are needed.

        Args:
            path: folder of the index.
            model: the D2LLM it was built with; None allows :meth:`search_vectors` only.
            verify: also compare every file with its SHA-256.

        Raises:
            MissingError: if there is no finished index, or a file is gone.
            FormatError: if a file is truncated or altered.
            MismatchError: if the index was built with another model.
        """
        root = Path(path)
        index = of_newest(root, lambda manifest: cls(root, Snapshot(root, manifest), model))
        if model is not None and (given := fingerprint_of(model)) != (built := index._snapshot.manifest.model):
            raise MismatchError(f"model: {root} was built with {built}, got {given}")
        if verify:
            index.verify()
        return index

    def search(
        self,
        queries: str | Sequence[str],
        k: int = 10,
        *,
        task: str | int = ASYM,
        mode: str = "exact",
        candidates: int = 100,
        batch_size: int = 32,
    ) -> list[list[Hit]]:
        """The k best passages of every query, best first, the one added earlier first among equals.

        Args:
            queries: one text or Nq of them.
            k: how many, at most ``len(self)``.
            task: "asym" (does the passage answer the query) or "sym" (do they say the same), or its index.
            mode: "exact" scores every passage with IEM; "bm25" and "cosine" score only the best
                ``candidates`` by that measure, a number of passages at least k (all, where there are fewer).
            batch_size: queries encoded at a time.

        Returns:
            Nq lists of k hits; one list in a list for a single text.

        Raises:
            InputError: for an empty query, k or candidates out of range, an unknown task or mode, or
                an index without what the mode or the encoding needs.
        """
        texts = check_texts([queries] if isinstance(queries, str) else queries, "queries")
        branch = self._check_search(k, task, mode, candidates)
        vectors = check_vectors("encoded queries", encode(self._model, texts, "query", batch_size), self.dim)
        return self._hits(*self._rank(vectors, texts, k, branch, mode, candidates))

    def search_vectors(
        self, queries: Any, k: int = 10, *, task: str | int = ASYM, mode: str = "exact", candidates: int = 100
    ) -> list[list[Hit]]:
        """As :meth:`search`, for queries encoded before; needs no model.

        Args:
            queries: (Nq, D) floating array or tensor.
            mode: "exact" or "cosine".

        Raises:
            InputError: as :meth:`search`, and for a wrong shape, NaN or infinity.
        """
        vectors = check_vectors("queries", queries, self.dim)
        if not len(vectors):
            raise InputError("queries: expected at least one, got none")
        if mode == "bm25":
            raise InputError("mode: 'bm25' needs the queries' texts; use search, or 'exact' or 'cosine'")
        branch = self._check_search(k, task, mode, candidates)
        return self._hits(*self._rank(vectors, [], k, branch, mode, candidates))

    def append(
        self,
        passages: Passages | None,
        ids: Sequence[str] | None = None,
        *,
        vectors: Any | None = None,
        shard_size: int = 16384,
        batch_size: int | None = None,
        progress: bool = True,
    ) -> None:
        """Add passages after all others, all or none of them. Arguments and resumption as in :meth:`build`.

        By default ids go on counting from the number of passages ever added.

        Raises:
            InputError: as :meth:`build`; for an id that is in the index; for texts missing where the
                others have them, or given where they have none.
        """
        check_count("shard_size", shard_size, 1)
        if batch_size is not None:
            check_count("batch_size", batch_size, 1)
        with write_lock(self.path):
            self._refresh()
            manifest = self._snapshot.manifest
            corpus = check_corpus(passages, ids, vectors, self.dim, first=manifest.rows)
            if (corpus.texts is not None) != manifest.texts:
                raise InputError(
                    f"passages: expected {'texts' if manifest.texts else 'None'}, as in the rest of the index"
                )
            known = self._snapshot.positions
            if taken := [name for name in corpus.ids if name in known]:
                raise InputError(f"ids: expected new ids, got {len(taken)} that the index holds, such as {taken[0]!r}")
            model = self._head if self._model is None else self._model
            layout = replace(manifest, generation=manifest.generation + 1)
            _add(self.path, layout, model, shards(corpus, shard_size, layout), batch_size, progress)
            self._snapshot = Snapshot.open(self.path)

    def delete(self, ids: str | Sequence[str]) -> None:
        """Remove passages from every later search, all or none of them. Their ids may be given again.

        Raises:
            InputError: for an id that is not in the index, or is named twice.
        """
        names = check_ids([ids] if isinstance(ids, str) else ids)
        with write_lock(self.path):
            self._refresh()
            known = self._snapshot.positions
            if absent := [name for name in names if name not in known]:
                raise InputError(f"ids: expected ids of the index, got {len(absent)} unknown, such as {absent[0]!r}")
            old = self._snapshot.manifest
            deleted = self._snapshot.deleted.clone()
            deleted[[known[name] for name in names]] = True
            generation = old.generation + 1
            replace(old, generation=generation, deleted=save_deleted(self.path, deleted, generation)).save(self.path)
            if old.deleted is not None:
                (self.path / old.deleted.name).unlink(missing_ok=True)
            self._snapshot = Snapshot.open(self.path)

    def verify(self) -> None:
        """Compare every file with its SHA-256.

        Raises:
            MissingError: if a file is gone.
            FormatError: if a file is altered, naming it.
        """
        of_newest(self.path, self._verify)

    def ids(self) -> list[str]:
        """Ids of the passages, in the order they were added."""
        return list(self._snapshot.positions)

    @property
    def dim(self) -> int:
        """Width D of the vectors it takes."""
        return self._snapshot.manifest.dim

    def __len__(self) -> int:
        """Passages that are not deleted."""
        return self._snapshot.size

    def __repr__(self) -> str:
        return f"Index({str(self.path)!r}, passages={len(self)}, dim={self.dim})"

    def _verify(self, manifest: Manifest) -> None:
        for record in tqdm(manifest.segments, desc="verify", unit="segment", delay=2):
            record.check(self.path / SEGMENTS)
        for file in [manifest.head, manifest.deleted]:
            if file is not None:
                file.check(self.path)

    def _refresh(self) -> None:
        """Move to the newest state, for a write that builds on it."""
        manifest = Manifest.load(self.path)
        if manifest.model != self._snapshot.manifest.model:
            raise MismatchError(f"path: {self.path} was rebuilt with another model since it was opened; open it again")
        if manifest != self._snapshot.manifest:
            self._snapshot = Snapshot.open(self.path)

    def _check_search(self, k: int, task: str | int, mode: str, candidates: int) -> int:
        """Check the arguments that both searches share; the task's index."""
        if mode not in MODES:
            raise InputError(f"mode: expected one of {MODES}, got {mode!r}")
        if not len(self):
            raise InputError("k: expected an index with passages to search, got one that is empty")
        check_count("k", k, 1, len(self))
        if mode != "exact":
            check_count("candidates", candidates, k)
        if mode == "cosine" and not self._snapshot.manifest.unit:
            raise InputError("mode: 'cosine' needs unit vectors, and this index was built with keep_vectors=False")
        return task_index(task)

    @torch.inference_mode()
    def _rank(
        self, vectors: Tensor, texts: list[str], k: int, task: int, mode: str, candidates: int
    ) -> tuple[Tensor, Tensor]:
        """Scores and positions, both (Nq, k), of query vectors (Nq, D); ``texts`` is read by BM25 alone."""
        snapshot = self._snapshot
        projected = project(self._head, vectors, "query")
        search = self._head.prepare(task, DTYPES[snapshot.manifest.dtype])
        if mode == "exact":
            scores, rows = search.topk(projected, snapshot.chunks("projected"), k)
            return scores.cpu(), snapshot.live[rows.cpu()]
        count = min(candidates, len(self))
        if mode == "bm25":
            rows = torch.from_numpy(snapshot.bm25.search(texts, count)[1])
        else:
            rows = nearest(vectors, snapshot.chunks("unit"), count)
        scores, positions = search.rerank(projected, snapshot.live[rows], snapshot.gather, k)
        return scores.cpu(), positions

    def _hits(self, scores: Tensor, positions: Tensor) -> list[list[Hit]]:
        """Look up what was found; both arguments (Nq, k)."""
        return [
            [self._hit(rank, *pair) for rank, pair in enumerate(zip(row, where, strict=True), start=1)]
            for row, where in zip(scores.tolist(), positions.tolist(), strict=True)
        ]

    def _hit(self, rank: int, score: float, position: int) -> Hit:
        name, text = self._snapshot.passage(position)
        return Hit(rank, name, score, text)


def _layout(model: Model, dtype: str, texts: bool, unit: bool) -> Manifest:
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
        head=FileRecord(f"head-{weights_digest(head)}.safetensors", 0, ""),
        segments=(),
    )


def _add(
    root: Path, layout: Manifest, model: Model, parts: dict[str, Corpus], batch_size: int | None, progress: bool
) -> None:
    """Write shards behind the segments that ``layout`` has, then make it the state of the index."""
    added = write_shards(root, layout, model, parts, batch_size=batch_size, progress=progress)
    manifest = replace(layout, segments=layout.segments + added)
    manifest.save(root)
    collect(root, manifest)


def _existing(root: Path, overwrite: bool) -> Manifest | None:
    """The manifest of an index at ``root``, None where there is none, or none worth keeping."""
    try:
        return Manifest.load(root)
    except MissingError:
        return None
    except FormatError:
        if overwrite:
            return None
        raise


def _same(old: Manifest, new: Manifest, names: list[str]) -> bool:
    """Whether the finished index is what the new build would give."""
    settings = [(m.model, m.dim, m.hidden, m.dtype, m.texts, m.unit, m.head.name) for m in (old, new)]
    return settings[0] == settings[1] and [s.name for s in old.segments] == names and old.deleted is None


def _save_head(root: Path, layout: Manifest, head: Any) -> FileRecord:
    """Write the head; its name comes from its content, so a rebuild never touches one in use."""
    with atomic_path(root / layout.head.name) as scratch:
        save_head(head, scratch)
    return FileRecord.of(root / layout.head.name)
