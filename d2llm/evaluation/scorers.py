"""Systems that score every passage, some queries at a time: BM25, cosines, the interaction module, their fusion."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from d2llm.bm25 import BM25
from d2llm.errors import InputError
from d2llm.evaluation.run import DEPTH, Run, best
from d2llm.fusion import BM25_WEIGHT, fuse
from d2llm.student import D2LLM
from d2llm.tasks import ASYM, task_index
from d2llm_kernels import IEM

Rows = NDArray[np.float32]

#: Scores of one system held at a time: 16 MB.
_BLOCK = 1 << 22


class Encoder(Protocol):
    """What turns N texts into (N, D) vectors; ``kind`` is "query" or "passage"."""

    def encode(self, texts: Sequence[str], kind: str) -> ArrayLike | Tensor: ...


class StudentEncoder:
    """A student as an encoder of both kinds of texts."""

    def __init__(self, student: D2LLM) -> None:
        self._student = student

    def encode(self, texts: Sequence[str], kind: str) -> torch.Tensor:
        """N texts -> (N, D) float32, on the student's device."""
        return self._student.encode(texts, kind, convert_to="torch")


@dataclass(frozen=True)
class Vectors:
    """Queries and passages as one encoder sees them, (Nq, D) and (Np, D), and the seconds that it took."""

    queries: Tensor
    passages: Tensor
    query_seconds: float = 0.0
    passage_seconds: float = 0.0

    @classmethod
    def of(cls, encoder: Encoder, queries: Sequence[str], passages: Sequence[str]) -> "Vectors":
        """Encode both.

        Raises:
            InputError: for an empty text.
        """
        start = time.perf_counter()
        encoded = torch.as_tensor(encoder.encode(queries, "query"))
        between = time.perf_counter()
        return cls(
            encoded,
            torch.as_tensor(encoder.encode(passages, "passage")),
            between - start,
            time.perf_counter() - between,
        )


@dataclass(frozen=True)
class Scorer:
    """A system that scores every passage for some queries."""

    name: str
    #: Which queries, and what the systems of ``needs`` scored for them -> complete rows (n, Np) float32.
    rows: Callable[[slice, Mapping[str, Rows]], Rows]
    needs: tuple["Scorer", ...] = ()
    #: A passage is found if its score is above that.
    above: float = -np.inf
    #: To encode or index all passages, and to encode all queries.
    passage_seconds: float = 0.0
    query_seconds: float = 0.0
    #: That a passage takes in memory as it is scored here.
    bytes_a_passage: float = 0.0


@dataclass(frozen=True)
class Found:
    """What one system found and what it cost; several runs are those of several seeds."""

    runs: tuple[Run, ...]
    #: Some of :data:`d2llm.evaluation.compare.COSTS`.
    cost: Mapping[str, float] = field(default_factory=dict)


def bm25_scorer(name: str, queries: Sequence[str], passages: Sequence[str]) -> Scorer:
    """BM25, which finds the passages that share a term with the query.

    Raises:
        InputError: for no passages.
    """
    start = time.perf_counter()
    index = BM25(passages)
    return Scorer(
        name,
        lambda some, _: index.scores(queries[some]),
        above=0.0,
        passage_seconds=time.perf_counter() - start,
        bytes_a_passage=index.nbytes / len(passages),
    )


def cosine_scorer(name: str, vectors: Vectors) -> Scorer:
    """The cosine of the vectors."""
    queries = torch.nn.functional.normalize(vectors.queries.float(), dim=1)
    lengths = vectors.passages.float().norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)

    def rows(some: slice, _: Mapping[str, Rows]) -> Rows:
        return (queries[some] @ vectors.passages.float().T / lengths).cpu().numpy()

    return _vector_scorer(name, rows, vectors, vectors.passages.shape[1])


def iem_scorer(name: str, head: IEM, vectors: Vectors, task: str = ASYM) -> Scorer:
    """The interaction module (paper section 3.2), which keeps F numbers of a passage.

    Raises:
        InputError: for an unknown task.
    """
    branch, dtype = task_index(task), head.linear1.weight.dtype

    def rows(some: slice, _: Mapping[str, Rows]) -> Rows:
        with torch.inference_mode():
            scores = head.score_all(vectors.queries[some].to(dtype), vectors.passages.to(dtype), branch)
        return scores.float().cpu().numpy()

    return _vector_scorer(name, rows, vectors, head.hidden)


def hybrid_scorer(name: str, semantic: Scorer, lexical: Scorer, weight: float = BM25_WEIGHT) -> Scorer:
    """z-scores over all passages, those of ``lexical`` times ``weight`` (:mod:`d2llm.fusion`)."""
    return Scorer(
        name,
        lambda _, found: fuse(found[semantic.name], found[lexical.name], weight),
        (semantic, lexical),
        passage_seconds=semantic.passage_seconds + lexical.passage_seconds,
        query_seconds=semantic.query_seconds,
        bytes_a_passage=semantic.bytes_a_passage + lexical.bytes_a_passage,
    )


def search(
    scorers: Sequence[Scorer], queries: Sequence[str], passages: Sequence[str], depth: int = DEPTH
) -> dict[str, Found]:
    """Run systems over all passages, some queries at a time, so that no matrix of all scores is ever there.

    What several systems need, such as BM25's scores that are a row and part of a fusion, is computed once.

    Args:
        scorers: the systems, of distinct names.
        queries: ids of the Nq queries that the scorers were made for.
        passages: ids of their Np passages.
        depth: passages kept of each query.

    Returns:
        {name: what it found}, in the order given.

    Raises:
        InputError: for a depth below 1, for two systems of one name, and for scores that are NaN or infinite, naming
            system and query.
    """
    if depth < 1:
        raise InputError(f"depth: expected at least 1, got {depth}")
    names = [scorer.name for scorer in scorers]
    if len(set(names)) != len(names):
        raise InputError(f"systems: expected distinct names, got {names}")
    ordered = list(dict.fromkeys(each.name for scorer in scorers for each in (*scorer.needs, scorer)))
    by_name = {each.name: each for scorer in scorers for each in (*scorer.needs, scorer)}
    seconds = dict.fromkeys(ordered, 0.0)
    parts: dict[str, list[tuple[NDArray[np.int32], Rows]]] = {name: [] for name in names}
    for some in _blocks(len(queries), len(passages)):
        rows: dict[str, Rows] = {}
        for name in ordered:
            start = time.perf_counter()
            rows[name] = by_name[name].rows(some, rows)
            _check_rows(name, rows[name], queries[some])
            if name in parts:
                parts[name].append(best(rows[name], depth, by_name[name].above))
            seconds[name] += time.perf_counter() - start
    result = {}
    for scorer in scorers:
        indices, scores = (np.concatenate(part) for part in zip(*parts[scorer.name], strict=True))
        searched = scorer.query_seconds + sum(seconds[each.name] for each in (*scorer.needs, scorer))
        cost = {
            "encode_ms": 1000 * scorer.passage_seconds / len(passages),
            "search_ms": 1000 * searched / len(queries),
            "bytes": scorer.bytes_a_passage,
        }
        result[scorer.name] = Found((Run(queries, passages, indices, scores),), cost)
    return result


def _vector_scorer(
    name: str, rows: Callable[[slice, Mapping[str, Rows]], Rows], vectors: Vectors, width: int
) -> Scorer:
    return Scorer(
        name,
        rows,
        passage_seconds=vectors.passage_seconds,
        query_seconds=vectors.query_seconds,
        bytes_a_passage=width * vectors.passages.element_size(),
    )


def _blocks(queries: int, passages: int) -> Iterator[slice]:
    at_once = max(1, _BLOCK // passages)
    return (slice(start, start + at_once) for start in range(0, queries, at_once))


def _check_rows(name: str, rows: Rows, queries: Sequence[str]) -> None:
    wrong = ~np.isfinite(rows).all(axis=1)
    if wrong.any():
        raise InputError(
            f"{name}: expected finite scores, got NaN or infinity for {wrong.sum()} of {len(queries)} queries, such as "
            f"{queries[int(wrong.argmax())]!r}"
        )
