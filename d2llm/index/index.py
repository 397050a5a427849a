"""The public face of the index, and how it is written: build, append, delete, compact, fit a surrogate."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from d2llm.errors import InputError, MismatchError
from d2llm.index.building import add, existing, plan, same, without, write_head
from d2llm.index.compaction import compacted, first_loose, small_run
from d2llm.index.engines import check_engine
from d2llm.index.fitting import CERTIFIED, pseudo_queries, write_surrogate
from d2llm.index.inputs import Passages, check_count, check_ids, check_vectors
from d2llm.index.intake import Intake, cut
from d2llm.index.manifest import Manifest
from d2llm.index.model import Model, check_windows, head_of, width
from d2llm.index.reader import Reader, check_weight
from d2llm.index.snapshot import Snapshot
from d2llm.index.surrogate import RANK
from d2llm.index.writer import collect, named, write_lock
from d2llm.tasks import ASYM, task_index
from d2llm.texts import check_texts
from d2llm_kernels import IEM

# From so many passages on a build fits a surrogate: below that, to score all of them is fast enough.
_LARGE = 50_000


class Index(Reader):
    """A corpus on disk, searched by the interaction module (paper section 3, IEM).

    A passage is stored as F numbers, its half of IEM's first layer, so that a search costs 2F² FLOPs
    a pair and no encoding. Made by :meth:`build` or :meth:`open`. An open index keeps showing the
    state it was opened at; :meth:`append` and :meth:`delete` move it to the newest.
    """

    @classmethod
    def build(
        cls,
        model: Model,
        passages: Passages | Iterator[Any] | None,
        path: str | os.PathLike[str],
        *,
        ids: Sequence[str] | None = None,
        metadata: Sequence[Mapping[str, Any]] | None = None,
        vectors: Any | None = None,
        dtype: str = "bfloat16",
        keep_vectors: bool = True,
        shard_size: int = 16384,
        batch_size: int | None = None,
        progress: bool = True,
        overwrite: bool = False,
        queries: Sequence[str] | Any | None = None,
        windows: bool = False,
        engine: str = "scan",
    ) -> "Index":
        """Build an index from texts, or from vectors that the model made before.

        The index appears as a whole at the end. A build that was killed goes on where it stopped when
        called again with the same input; the same build of a finished index only opens it.

        Args:
            model: a D2LLM; with ``vectors`` given, a bare IEM will do.
            passages: N texts, (id, text) pairs or (id, text, metadata) triples; None with ``vectors`` gives an index
                without texts. An iterator brings ids and metadata itself, and no more of it than a segment is in memory
                at a time; a build that was killed takes it from the start again and encodes what is missing.
            path: folder of the index.
            ids: N distinct strings; by default "0", "1" and so on.
            metadata: N mappings of fields to values, for the filters of a search: texts, lists of texts, numbers, true
                or false, in a field of one kind everywhere. A passage may lack any field.
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
            windows: encode passages as a whole, also those that are appended later, in place of cutting them at the
                student's limit: in windows of that length, the tokens of which are pooled together.
            engine: what :meth:`fit_surrogate` takes.

        Raises:
            InputError: for an empty corpus, empty texts, repeated ids, metadata of another kind, NaN, a wrong shape, a
                model that makes no ``windows``, or an index of other content at ``path`` without ``overwrite``.
            OSError: if the disk fills; what was finished stays.
        """
        root, head = Path(path), head_of(model)
        check_count("shard_size", shard_size, 1)
        if batch_size is not None:
            check_count("batch_size", batch_size, 1)
        check_engine(engine)
        layout = plan(model, dtype, texts=passages is not None, unit=keep_vectors, windows=windows)
        intake = Intake(passages, ids, metadata, vectors, width(head))
        with write_lock(root):
            old = existing(root, overwrite)
            if old is not None and not overwrite:
                if not same(old, layout, (name for name, _ in named(cut(intake, shard_size), layout))):
                    raise InputError(f"path: {root} holds an index of other content; pass overwrite=True to replace it")
            else:
                generation = old.generation + 1 if old else 0
                layout = replace(layout, generation=generation, head=write_head(root, layout, head))
                layout = add(root, layout, model, intake, shard_size, batch_size, progress)
                if old is None or not same(old, layout, (segment.name for segment in layout.segments)):
                    layout.save(root)
                    collect(root, layout)
        index = cls(root, Snapshot.open(root), model)
        askable = queries is not None or (layout.texts and not isinstance(model, IEM))
        if len(index) >= _LARGE and askable and index._snapshot.surrogate is None:
            index.fit_surrogate(queries, engine=engine, progress=progress)
        return index

    def append(
        self,
        passages: Passages | Iterator[Any] | None,
        ids: Sequence[str] | None = None,
        *,
        metadata: Sequence[Mapping[str, Any]] | None = None,
        vectors: Any | None = None,
        shard_size: int = 16384,
        batch_size: int | None = None,
        progress: bool = True,
        upsert: bool = False,
    ) -> None:
        """Add passages after all others, all or none of them. Arguments, iterators and resumption as in :meth:`build`.

        By default ids go on counting from the number of passages ever added. With ``upsert`` a passage replaces the one
        that has its id; where text and metadata are the same and no vectors are given, that one is left as it is.

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
            if (passages is not None) != manifest.texts:
                raise InputError(
                    f"passages: expected {'texts' if manifest.texts else 'None'}, as in the rest of the index"
                )
            intake = Intake(passages, ids, metadata, vectors, self.dim, self._snapshot, upsert)
            model = self._head if self._model is None else self._model
            if manifest.windows and vectors is None:
                check_windows(model)
            layout = add(self.path, manifest, model, intake, shard_size, batch_size, progress)
            if layout == manifest:
                return
            changes = without(self.path, self._snapshot, intake.gone)
            self._move(replace(changes, segments=layout.segments, fields=layout.fields))
            if run := small_run(self._snapshot, shard_size):
                start, end = run
                self._move(compacted(self.path, self._snapshot, start, shard_size, end))

    def fit_surrogate(
        self,
        queries: Sequence[str] | Any | None = None,
        *,
        task: str | int = ASYM,
        rank: int = RANK,
        engine: str = "scan",
        certify: int = CERTIFIED,
        seed: int = 0,
        progress: bool = True,
    ) -> None:
        """Fit a surrogate of the interaction module to the passages, and certify searches by it.

        It costs ``rank`` bytes a passage; the fit scores some 4,600 passages for each query, and each query that it is
        certified on is searched in full, which a call after a stop goes on with. Passages that are appended later are
        all scored; fit anew when they are many.

        Args:
            queries: texts, or vectors (Nq, D), like those that will be asked. Half of them, ``certify`` at most,
                certify, and 4,000 of the others at most are fitted to. 302 certified queries are the least that can
                promise a recall of 0.99, if they miss nothing; with 1,000 they may miss 0.66 %, which takes far fewer
                candidates. With vectors "iem" alone is certified, not "hybrid". By default first sentences of passages.
            task: the branch that will be searched.
            rank: width R. A wider one needs a longer fit: among a million passages, after the short fit of smaller
                indexes, 256 needed more candidates than 128.
            engine: what finds candidates of certified searches. "scan" looks at every passage's R bytes. "flat", "ivf"
                and "hnsw" are faiss's (extra ``faiss``), for corpora whose scan takes too long; what they miss is
                counted in the certificate.
            certify: how many queries certify at most.
            seed: of what is drawn.
            progress: show a bar.

        Raises:
            InputError: for fewer than 2 queries; for an index that is empty, or without texts where none are given;
                for an unknown engine.
            ModuleNotFoundError: for an engine whose package is not installed.
            OSError: if the disk fills; the index stays as it was.
        """
        check_count("rank", rank, 1)
        check_count("certify", certify, 1)
        check_engine(engine)
        branch = task_index(task)
        with write_lock(self.path):
            self._refresh()
            snapshot, weight = self._snapshot, self.bm25_weight
            if not len(self):
                raise InputError("passages: expected some to fit a surrogate to, got an empty index")
            given = pseudo_queries(snapshot, seed) if queries is None else queries
            texts = None if hasattr(given, "shape") else check_texts(given, "queries")
            vectors = check_vectors("queries", given, self.dim) if texts is None else self._encoded(texts, None)
            record = write_surrogate(
                self.path,
                snapshot,
                self._head,
                vectors,
                texts,
                task=branch,
                rank=rank,
                weight=weight,
                engine=engine,
                certify=certify,
                seed=seed,
                progress=progress,
            )
            self._move(replace(snapshot.manifest, generation=snapshot.manifest.generation + 1, surrogate=record))

    def keep_bm25_weight(self, weight: float) -> None:
        """Keep in the index what BM25 weighs in a hybrid search, in place of what the student says.

        A surrogate certifies a hybrid search for one weight: fit it again for another.

        Raises:
            InputError: for a weight that is negative or not finite.
        """
        checked = check_weight(weight)
        with write_lock(self.path):
            self._refresh()
            manifest = self._snapshot.manifest
            self._move(replace(manifest, generation=manifest.generation + 1, bm25_weight=checked))

    def compact(self, *, shard_size: int = 16384) -> None:
        """Free the space of deleted passages, and put those of small segments together, ``shard_size`` in each.

        The first segments stay that are full and have none deleted; the others are written anew. A surrogate that
        covers any of these is dropped: fit it again. An append by itself puts neighbours together, of
        ``shard_size`` passages at most, when more than 32 segments lie behind the last full one and behind those that a
        surrogate covers.

        Raises:
            OSError: if the disk fills; the index stays as it was.
        """
        check_count("shard_size", shard_size, 1)
        with write_lock(self.path):
            self._refresh()
            start = first_loose(self._snapshot, shard_size)
            if start < len(self._snapshot.segments):
                self._move(compacted(self.path, self._snapshot, start, shard_size))

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
            self._move(without(self.path, self._snapshot, list(known.values())))

    def _move(self, manifest: Manifest) -> None:
        """Make a manifest the state of the index, and move to it."""
        manifest.save(self.path)
        collect(self.path, manifest)
        self._snapshot = Snapshot(self.path, manifest, self._snapshot)

    def _refresh(self) -> None:
        """Move to the newest state, for a write that builds on it."""
        manifest = Manifest.load(self.path)
        if manifest.model != self._snapshot.manifest.model:
            raise MismatchError(f"path: {self.path} was rebuilt with another model since it was opened; open it again")
        if manifest != self._snapshot.manifest:
            self._snapshot = Snapshot(self.path, manifest, self._snapshot)
