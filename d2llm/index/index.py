"""The public face of the index: build, open, search, append, delete, verify."""

import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from d2llm.errors import InputError, MismatchError
from d2llm.index.asking import Asked
from d2llm.index.building import add, existing, plan, same, write_head
from d2llm.index.certificate import Audit
from d2llm.index.fitting import divided, fit_maps, pseudo_queries, write_surrogate
from d2llm.index.hits import Hit, look_up
from d2llm.index.inputs import Passages, check_corpus, check_count, check_ids, check_vectors
from d2llm.index.manifest import Manifest
from d2llm.index.model import (
    Model,
    bm25_weight,
    encode,
    fingerprint_of,
    head_of,
    load_head,
    width,
)
from d2llm.index.searching import Found
from d2llm.index.snapshot import Snapshot, of_newest, save_deleted
from d2llm.index.surrogate import RANK
from d2llm.index.writer import SEGMENTS, collect, shards, write_lock
from d2llm.tasks import ASYM, task_index
from d2llm.texts import check_texts
from d2llm_kernels import IEM

# From so many passages on a build fits a surrogate: below that, to score all of them is fast enough.
_LARGE = 50_000


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
        self._audit = Audit()
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
        queries: Sequence[str] | Any | None = None,
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
            queries: what :meth:`fit_surrogate` takes, which is called here for 50,000 passages or more, if there are
                queries or texts to make them of.

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
        layout = plan(model, dtype, texts=corpus.texts is not None, unit=keep_vectors)
        parts = shards(corpus, shard_size, layout)
        with write_lock(root):
            old = existing(root, overwrite)
            if old is None or not same(old, layout, list(parts)):
                if old is not None and not overwrite:
                    raise InputError(f"path: {root} holds an index of other content; pass overwrite=True to replace it")
                generation = old.generation + 1 if old else 0
                layout = replace(layout, generation=generation, head=write_head(root, layout, head))
                add(root, layout, model, parts, batch_size, progress)
        index = cls(root, Snapshot.open(root), model)
        askable = queries is not None or (corpus.texts is not None and not isinstance(model, IEM))
        if len(index) >= _LARGE and askable and index._snapshot.surrogate is None:
            index.fit_surrogate(queries, progress=progress)
        return index

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
        mode: str | None = None,
        channels: Sequence[str] = (),
        candidates: int = 100,
        recall: float | None = None,
        exact: bool = False,
        audit: float = 0,
        batch_size: int = 32,
        explain: bool = False,
    ) -> list[list[Hit]]:
        """The k best passages of every query, best first, the one added earlier first among equals.

        Args:
            queries: one text or Nq of them.
            k: how many; all where there are fewer.
            task: "asym" (does the passage answer the query) or "sym" (do they say the same), or its index.
            mode: what ranks. "iem": the interaction module. "bm25": BM25, which finds those alone that share a term
                with the query. "hybrid": both, as z(IEM) + weight * z(BM25) over the passages, with the student's
                ``bm25_weight``. "cosine": the cosine of the student's vectors. By default "hybrid" where the index has
                terms of texts, else "iem".
            channels: what chooses candidates, of which alone "iem" and "hybrid" then find the best: some of "bm25",
                "cosine" and "surrogate". Nothing is promised then.
            candidates: how many each channel chooses, at least k.
            recall: without channels, the share of the exact best k that "iem" and "hybrid" must find in the mean of
                queries like those that the surrogate was certified on (see :meth:`fit_surrogate`). Where it was not
                certified for that, and without a surrogate, every passage is scored. 0.99 by default.
            exact: score every passage.
            audit: share of the queries that is searched in full too. A warning says when what this index found misses
                more than was promised, with 95 % confidence: passages or queries are others than those certified.
            batch_size: queries encoded at a time.
            explain: say of each hit by which measures it was found, at what rank (``Hit.ranks``), and what was promised
                (``Hit.promised``).

        Returns:
            Nq lists of at most k hits; one list in a list for a single text.

        Raises:
            InputError: for an empty query, a k below 1, an unknown task, mode or channel, an empty index, or an index
                without what the mode or the encoding needs.
        """
        texts = check_texts([queries] if isinstance(queries, str) else queries, "queries")
        mode = mode or ("hybrid" if self._snapshot.has_terms else "iem")
        asked = Asked(k, task_index(task), mode, channels, candidates, 1 if exact else recall)
        asked.check(self._snapshot)
        vectors = torch.empty(0) if mode == "bm25" else self._encoded(texts, batch_size)
        found, promised = self._find(asked, vectors, texts)
        if promised is not None and promised < 1:
            for row in [row for row in range(len(texts)) if self._audit.due(audit)]:
                exact_found, _ = self._find(replace(asked, recall=1), vectors[row : row + 1], texts[row : row + 1])
                missed = 1 - np.isin(exact_found[0].positions, found[row].positions).mean()
                if self._audit.add(float(missed), promised):
                    warnings.warn(f"recall: {self.path} finds less than {promised}; call fit_surrogate", stacklevel=2)
        return look_up(self._snapshot, found, promised, explain)

    def search_vectors(
        self,
        queries: Any,
        k: int = 10,
        *,
        task: str | int = ASYM,
        mode: str = "iem",
        channels: Sequence[str] = (),
        candidates: int = 100,
        recall: float | None = None,
        exact: bool = False,
        explain: bool = False,
    ) -> list[list[Hit]]:
        """As :meth:`search`, for queries encoded before; needs no model.

        Args:
            queries: (Nq, D) floating array or tensor.
            mode: "iem" or "cosine".
            channels: "cosine", "surrogate" or none.

        Raises:
            InputError: as :meth:`search`, and for a wrong shape, NaN or infinity.
        """
        vectors = check_vectors("queries", queries, self.dim)
        if not len(vectors):
            raise InputError("queries: expected at least one, got none")
        for name, given in (("mode", (mode,)), ("channels", channels)):
            if needy := {"hybrid", "bm25"}.intersection(given):
                raise InputError(f"{name}: {min(needy)!r} needs the queries' texts; use search")
        asked = Asked(k, task_index(task), mode, channels, candidates, 1 if exact else recall)
        asked.check(self._snapshot)
        return look_up(self._snapshot, *self._find(asked, vectors, []), explain)

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
            if taken := self._snapshot.find(corpus.ids):
                raise InputError(
                    f"ids: expected new ids, got {len(taken)} that the index holds, such as {min(taken)!r}"
                )
            model = self._head if self._model is None else self._model
            layout = replace(manifest, generation=manifest.generation + 1)
            add(self.path, layout, model, shards(corpus, shard_size, layout), batch_size, progress)
            self._snapshot = Snapshot.open(self.path)

    def fit_surrogate(
        self,
        queries: Sequence[str] | Any | None = None,
        *,
        task: str | int = ASYM,
        rank: int = RANK,
        seed: int = 0,
        progress: bool = True,
    ) -> None:
        """Fit a surrogate of the interaction module to the passages, and certify searches by it.

        It costs ``rank`` bytes a passage and, on two cores, some seconds to fit; each of up to 500 queries that it is
        certified on is searched in full. Passages that are appended later are all scored; fit anew when they are many.

        Args:
            queries: texts, or vectors (Nq, D), like those that will be asked. Two thirds, 1,000 at most, are fitted to,
                the others, 500 at most, certify; 302 of them are the least that can promise a recall of 0.99. With
                vectors "iem" alone is certified, not "hybrid". By default first sentences of passages.
            task: the branch that will be searched.
            rank: width R; a wider one needs fewer candidates.
            seed: of what is drawn.
            progress: show a bar.

        Raises:
            InputError: for fewer than 3 queries; for an index that is empty, or without texts where none are given.
            OSError: if the disk fills; the index stays as it was.
        """
        check_count("rank", rank, 1)
        branch = task_index(task)
        with write_lock(self.path):
            self._refresh()
            snapshot, weight = self._snapshot, bm25_weight(self._model)
            if not len(self):
                raise InputError("passages: expected some to fit a surrogate to, got an empty index")
            given = pseudo_queries(snapshot, seed) if queries is None else queries
            texts = None if hasattr(given, "shape") else check_texts(given, "queries")
            vectors = check_vectors("queries", given, self.dim) if texts is None else self._encoded(texts, None)
            fitted, certified = divided(len(vectors), seed)
            maps = fit_maps(snapshot, self._head, vectors[fitted], branch, rank, seed)
            words = [texts[row] for row in certified.tolist()] if texts and snapshot.has_terms else None
            record = write_surrogate(
                self.path, snapshot, self._head, maps, vectors[certified], words, branch, weight, progress
            )
            manifest = replace(snapshot.manifest, generation=snapshot.manifest.generation + 1, surrogate=record)
            manifest.save(self.path)
            collect(self.path, manifest)
            self._snapshot = Snapshot.open(self.path)

    def delete(self, ids: str | Sequence[str]) -> None:
        """Remove passages from every later search, all or none of them. Their ids may be given again.

        Raises:
            InputError: for an id that is not in the index, or is named twice.
        """
        names = check_ids([ids] if isinstance(ids, str) else ids)
        with write_lock(self.path):
            self._refresh()
            known = self._snapshot.find(names)
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
        return list(self._snapshot.ids())

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
        if manifest.surrogate is not None:
            manifest.surrogate.check(self.path)

    def _refresh(self) -> None:
        """Move to the newest state, for a write that builds on it."""
        manifest = Manifest.load(self.path)
        if manifest.model != self._snapshot.manifest.model:
            raise MismatchError(f"path: {self.path} was rebuilt with another model since it was opened; open it again")
        if manifest != self._snapshot.manifest:
            self._snapshot = Snapshot.open(self.path)

    def _find(self, asked: Asked, vectors: Tensor, texts: list[str]) -> tuple[list[Found], float | None]:
        return asked.find(self._snapshot, self._head, vectors, texts, bm25_weight(self._model))

    def _encoded(self, texts: Sequence[str], batch_size: int | None) -> Tensor:
        return check_vectors("encoded queries", encode(self._model, texts, "query", batch_size), self.dim)
