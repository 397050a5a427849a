"""MTEB's retrieval through the index on disk: a corpus is projected once and searched by a kernel."""

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from d2llm.errors import InputError
from d2llm.index import Index
from d2llm.integrations.mteb.encoder import D2LLMEncoder, branch_of
from d2llm.student import D2LLM


class D2LLMSearch(D2LLMEncoder):
    """As :class:`D2LLMEncoder`, but retrieval builds an index of each corpus, in a temporary folder, and searches that.

    Args:
        student: the model.
        name: under which MTEB keeps results; one of its own for each way to search.
        mode: how the index ranks: ``iem``, ``hybrid`` (BM25 beside it), ``bm25`` or ``cosine``.
        dtype: how passages are stored.
    """

    def __init__(self, student: D2LLM, name: str = "d2llm/student", mode: str = "iem", dtype: str = "float32") -> None:
        super().__init__(student, name)
        self.mode, self.dtype = mode, dtype
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._index: Index | None = None
        self._texts: dict[str, str] = {}

    def index(
        self,
        corpus: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        encode_kwargs: Mapping[str, Any],
        num_proc: int | None,
        **kwargs: Any,
    ) -> None:
        """Keep a corpus to be searched; passages without text are left out, and never found.

        Args:
            corpus: rows of ``id``, ``text`` and perhaps ``title``.
            task_metadata, hf_split, hf_subset, encode_kwargs, num_proc, **kwargs: not read.

        Raises:
            InputError: for a corpus without any text.
        """
        self._index = None
        self._texts = {row["id"]: text for row in corpus if (text := _text(row))}
        if not self._texts:
            raise InputError(f"task: expected a corpus of texts, got none in {task_metadata.name}")

    def search(
        self,
        queries: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        top_k: int,
        encode_kwargs: Mapping[str, Any],
        top_ranked: Mapping[str, Sequence[str]] | None = None,
        num_proc: int | None,
        **kwargs: Any,
    ) -> dict[str, dict[str, float]]:
        """{query id: {passage id: score}} of the best ``top_k`` passages.

        Args:
            queries: rows of ``id``, ``text`` and perhaps ``instruction``.
            task_metadata: of the task, which decides the branch.
            hf_split, hf_subset, encode_kwargs, num_proc, **kwargs: not read.
            top_k: passages a query, 1 or more.
            top_ranked: passages of each query that alone are scored, by the interaction module.

        Raises:
            InputError: for an empty query.
        """
        branch = branch_of(task_metadata)
        asked = {row["id"]: " ".join(filter(None, (row["text"], row.get("instruction")))) for row in queries}
        if top_ranked is not None:
            return self._reranked(asked, top_ranked, branch, top_k)
        found = self._built().search(
            list(asked.values()), min(top_k, len(self._texts)), task=branch, mode=self.mode, exact=True
        )
        return {name: {hit.id: hit.score for hit in hits} for name, hits in zip(asked, found, strict=True)}

    def _built(self) -> Index:
        if self._index is None:
            self._folder = tempfile.TemporaryDirectory(prefix="d2llm-mteb-")
            self._index = Index.build(
                self.model,
                list(self._texts.values()),
                Path(self._folder.name) / "index",
                ids=list(self._texts),
                dtype=self.dtype,
                keep_vectors=self.mode == "cosine",
                progress=False,
            )
        return self._index

    def _reranked(
        self, asked: Mapping[str, str], top_ranked: Mapping[str, Sequence[str]], branch: str, top_k: int
    ) -> dict[str, dict[str, float]]:
        pairs = [(query, passage) for query in asked for passage in top_ranked.get(query, ()) if passage in self._texts]
        result: dict[str, dict[str, float]] = {query: {} for query in asked}
        if pairs:
            queries, passages = [asked[query] for query, _ in pairs], [self._texts[passage] for _, passage in pairs]
            for (query, passage), score in zip(pairs, self.model.score(queries, passages, branch), strict=True):
                result[query][passage] = float(score)
        return {query: dict(sorted(row.items(), key=lambda hit: -hit[1])[:top_k]) for query, row in result.items()}


def _text(row: Mapping[str, Any]) -> str:
    """A passage as MTEB's own encoders read it: the title before the text."""
    return f"{row.get('title') or ''} {row['text']}".strip()
