"""An index opened for reading: searches, ids, verification."""

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from typing_extensions import Self

from d2llm.errors import InputError, MismatchError, shown
from d2llm.index.asking import Asked
from d2llm.index.certificate import Audit
from d2llm.index.export import export, surrogate_of
from d2llm.index.filters import Filters
from d2llm.index.hits import Hit, look_up
from d2llm.index.inputs import check_vectors
from d2llm.index.manifest import Manifest
from d2llm.index.measures import measured
from d2llm.index.model import (
    Model,
    bm25_weight,
    encode,
    fingerprint_of,
    head_of,
    load_head,
    project,
)
from d2llm.index.searching import Found, Scores
from d2llm.index.segment import Passage
from d2llm.index.snapshot import Snapshot, of_newest
from d2llm.index.surrogate import Maps
from d2llm.index.writer import SEGMENTS
from d2llm.tasks import ASYM, task_index
from d2llm.texts import check_texts


class Reader:
    """One state of a corpus on disk, the one it was opened at, searched by the interaction module and by words."""

    def __init__(self, path: Path, snapshot: Snapshot, model: Model | None) -> None:
        self.path = path
        self._snapshot = snapshot
        self._model = model
        self._audit = Audit()
        self._head = load_head(path / snapshot.manifest.head.name) if model is None else head_of(model)

    @classmethod
    def open(cls, path: str | os.PathLike[str], model: Model | None = None, *, verify: bool = False) -> Self:
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
        reader = of_newest(root, lambda manifest: cls(root, Snapshot(root, manifest), model))
        if model is not None and (given := fingerprint_of(model)) != (built := reader._snapshot.manifest.model):
            raise MismatchError(f"model: {root} was built with {built}, got {given}")
        if verify:
            reader.verify()
        return reader

    def search(
        self,
        queries: str | Sequence[str],
        k: int = 10,
        *,
        task: str | int = ASYM,
        mode: str | None = None,
        channels: Sequence[str] = (),
        candidates: int = 100,
        given: Sequence[Sequence[str]] | None = None,
        recall: float | None = None,
        exact: bool = False,
        filters: Filters | None = None,
        audit: float = 0,
        batch_size: int = 32,
        explain: bool = False,
        vectors: Any | None = None,
        bm25_weight: float | None = None,
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
            given: ids of candidates of each query, such as a vector database found by what
                :meth:`export_surrogate` wrote; what channels choose is added. Those that are not in the index, or do
                not pass the filters, are left out.
            recall: without channels, the share of the exact best k that "iem" and "hybrid" must find in the mean of
                queries like those that the surrogate was certified on (see :meth:`fit_surrogate`). Where it was not
                certified for that, and without a surrogate, every passage is scored. 0.99 by default.
            exact: score every passage.
            filters: what metadata the passages that may be found must have, as ``{"lang": ["en", "de"], "year": {"gte":
                2020, "lt": 2024}, "open": True}``: a field holds a value, one of several, or one between bounds (gt,
                gte, lt, lte; texts in the order of their code points), and all fields named must. It is applied before
                anything is scored, changes no score, and promises hold as without it.
            audit: share of the queries that is searched in full too. A warning says when what this index found misses
                more than was promised, with 95 % confidence: passages or queries are others than those certified.
            batch_size: queries encoded at a time.
            explain: say of each hit by which measures it was found, at what rank (``Hit.ranks``), its score by every
                measure (``Hit.scores``), and what was promised (``Hit.promised``).
            vectors: the queries (Nq, D), as :meth:`encode_queries` gives them; None encodes them now.
            bm25_weight: what BM25 weighs in "hybrid"; None takes what the index keeps, or else the student.

        Returns:
            Nq lists of at most k hits; one list in a list for a single text.

        Raises:
            InputError: for an empty query, a k below 1, an unknown task, mode or channel, filters of unknown fields, of
                none, or of values of another kind, an empty index, or an index without what the mode or the encoding
                needs.
        """
        texts = check_texts([queries] if isinstance(queries, str) else queries, "queries")
        mode = mode or ("hybrid" if self._snapshot.has_terms else "iem")
        asked = Asked(k, task_index(task), mode, channels, candidates, 1 if exact else recall, filters, given)
        asked.check(self._snapshot, len(texts))
        weight = check_weight(self.bm25_weight if bm25_weight is None else bm25_weight)
        if vectors is not None:
            made = check_vectors("vectors", vectors, self.dim)
            if len(made) != len(texts):
                raise InputError(f"vectors: expected {len(texts)}, one a query, got {len(made)}")
        else:
            made = torch.empty(0) if mode == "bm25" else self._encoded(texts, batch_size)
        found, promised = self._find(asked, made, texts, weight)
        if promised is not None and promised < 1:
            for row in [row for row in range(len(texts)) if self._audit.due(audit)]:
                exact_found, _ = self._find(replace(asked, recall=1), made[row : row + 1], texts[row : row + 1], weight)
                missed = 1 - np.isin(exact_found[0].positions, found[row].positions).mean()
                if self._audit.add(float(missed), promised):
                    warnings.warn(f"recall: {self.path} finds less than {promised}; call fit_surrogate", stacklevel=2)
        return look_up(self._snapshot, found, promised, self._measured(asked, made, texts, found) if explain else None)

    def search_vectors(
        self,
        queries: Any,
        k: int = 10,
        *,
        task: str | int = ASYM,
        mode: str = "iem",
        channels: Sequence[str] = (),
        candidates: int = 100,
        given: Sequence[Sequence[str]] | None = None,
        recall: float | None = None,
        exact: bool = False,
        filters: Filters | None = None,
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
        for name, asked_for in (("mode", (mode,)), ("channels", channels)):
            if needy := {"hybrid", "bm25"}.intersection(asked_for):
                raise InputError(f"{name}: {min(needy)!r} needs the queries' texts; use search")
        asked = Asked(k, task_index(task), mode, channels, candidates, 1 if exact else recall, filters, given)
        asked.check(self._snapshot, len(vectors))
        found, promised = self._find(asked, vectors, [], 0)
        return look_up(self._snapshot, found, promised, self._measured(asked, vectors, [], found) if explain else None)

    def encode_queries(self, texts: Sequence[str], batch_size: int = 32) -> np.ndarray:
        """Vectors (Nq, D) float32 of queries, for several searches.

        Raises:
            InputError: for an empty query, or an index opened without a model that encodes.
        """
        return self._encoded(check_texts(texts, "queries"), batch_size).numpy()

    def surrogate_queries(self, vectors: Any) -> np.ndarray:
        """Queries as the surrogate's vectors are searched with, by inner product: (Nq, D) -> (Nq, R) int8.

        Raises:
            InputError: if the index has no surrogate; for a wrong shape, NaN or infinity.
        """
        maps = surrogate_of(self._snapshot).maps
        return maps.queries(project(self._head, check_vectors("vectors", vectors, self.dim), "query")).numpy()

    def export_surrogate(self, path: str | os.PathLike[str]) -> None:
        """Write the surrogate's vectors of all passages for a vector database, in a folder that appears at the end.

        ``vectors.npy`` holds N x R numbers, int8, to be searched by inner product; line i of ``ids.jsonl`` is the id of
        passage i, as JSON. What was appended since the fit is there too.

        Raises:
            InputError: if the index has no surrogate.
            OSError: if the disk fills.
        """
        export(self._snapshot, Path(path))

    @property
    def bm25_weight(self) -> float:
        """What BM25 weighs in a hybrid search: what the index keeps, or else what the student was saved with."""
        kept = self._snapshot.manifest.bm25_weight
        return bm25_weight(self._model) if kept is None else kept

    @property
    def measures(self) -> frozenset[str]:
        """Modes and channels that it can be searched by."""
        held = {
            "iem": True,
            "cosine": self._snapshot.manifest.unit,
            "bm25": self._snapshot.has_terms,
            "hybrid": self._snapshot.has_terms,
            "surrogate": self._snapshot.surrogate is not None,
        }
        return frozenset(name for name, there in held.items() if there)

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

    def rows(self, count: int) -> Iterator[tuple[list[Passage], Tensor]]:
        """The passages in the order they were added, ``count`` at a time, and their projections (n, F) float32."""
        for positions in self._snapshot.live.split(count):
            passages = [self._snapshot.passage(position) for position in positions.tolist()]
            yield passages, self._snapshot.gather(positions).float()

    def surrogate(self, task: str | int = ASYM) -> Maps | None:
        """The maps of the surrogate, if there is one for the branch.

        Raises:
            InputError: for an unknown task.
        """
        number, held = task_index(task), self._snapshot.surrogate
        return None if held is None or held[1].task != number else held[0].maps

    def certified(self, k: int, recall: float, task: str | int = ASYM) -> int | None:
        """Candidates of the surrogate that promise a mean share ``recall`` of the exact best ``k``, if any do.

        Raises:
            InputError: for an unknown task.
        """
        return None if self.surrogate(task) is None else self._snapshot.candidates("iem", k, recall)

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

    def _find(self, asked: Asked, vectors: Tensor, texts: list[str], weight: float) -> tuple[list[Found], float | None]:
        return asked.find(self._snapshot, self._head, vectors, texts, weight)

    def _measured(self, asked: Asked, vectors: Tensor, texts: list[str], found: list[Found]) -> list[dict[str, Scores]]:
        return measured(self._snapshot, self._head, asked.task, vectors, texts, found)

    def _encoded(self, texts: Sequence[str], batch_size: int | None) -> Tensor:
        return check_vectors("encoded queries", encode(self._model, texts, "query", batch_size), self.dim)


def check_weight(weight: float) -> float:
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < float("inf"):
        raise InputError(f"bm25_weight: expected a finite number of at least 0, got {shown(weight)}")
    return float(weight)
