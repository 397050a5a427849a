"""Hard negatives: passages that BM25 or a bi-encoder ranks high for a query and that are not its positives.

The published run draws them from BM25's top 10 and a bi-encoder's top 100 (paper, section 4). Which
ones are drawn depends on the seed, the query and the passages' texts alone: not on the order of the
examples, not on the process.
"""

import hashlib
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from d2llm.bm25 import BM25, top_indices
from d2llm.data.example import Example, text_id, text_key
from d2llm.data.positives import KnownPositives
from d2llm.errors import InputError
from d2llm.texts import check_texts

if TYPE_CHECKING:
    import torch

    from d2llm.student import D2LLM

METHODS = ("bm25", "vectors", "both")
BM25_TOP = 10
VECTOR_TOP = 100
# Scores held at once by the search over vectors: 256 MB.
_SCORES_AT_ONCE = 1 << 26
# From so many scores on a search takes seconds, and progress is shown.
_MANY_SCORES = 10_000_000

_Pool: TypeAlias = list[list[int]]


def mine_negatives(
    examples: Sequence[Example],
    corpus: Sequence[str],
    k: int = 8,
    method: str = "bm25",
    *,
    bm25_top: int = BM25_TOP,
    vector_top: int = VECTOR_TOP,
    query_vectors: ArrayLike | None = None,
    passage_vectors: ArrayLike | None = None,
    margin: float | None = None,
    positives: Mapping[str, Collection[str]] | None = None,
    fill: bool = True,
    seed: int = 0,
) -> list[Example]:
    """Give every example k hard negatives out of a corpus.

    Never drawn: any positive of the same query text in ``examples`` or ``positives``, a passage
    equal to the query, and for the symmetric task any text paired with the query either way round.
    Texts are compared with their white space collapsed.

    Args:
        examples: what to mine for; negatives and scores they carry are replaced.
        corpus: Np passages; repeated ones count once.
        k: negatives an example.
        method: "bm25", "vectors" (cosine), or "both": half from each, the odd one from BM25.
        bm25_top: how many of BM25's best, positives not counted, are drawn from; only passages that
            share a term with the query.
        vector_top: the same for the vectors' best.
        query_vectors: (len(examples), D) float, one an example, of any encoder.
        passage_vectors: (Np, D) float, one a passage.
        margin: never draw a passage whose cosine with the query is above the positive's less this: it may well be an
            answer that nobody has marked (NV-Retriever, arXiv 2407.15831). Needs vectors, and positives in the corpus.
        positives: further known positives, {query text: passage texts}.
        fill: draw random passages where too few are found; otherwise such an example has fewer.
            Either way it has fewer where the corpus holds too few passages.
        seed: changes the draw.

    Returns:
        New examples in the given order.

    Raises:
        InputError: for an empty corpus, an unknown method, a number below 1, and missing,
            misshapen or non-finite vectors; with a margin, for a positive that the corpus lacks.
    """
    _check(examples, corpus, k, method, bm25_top, vector_top)
    first = {text: number for number, text in reversed(list(enumerate(corpus)))}
    texts = sorted(first, key=first.__getitem__)
    known = _Known(KnownPositives(examples, positives or {}), texts)
    near = None
    pools: list[_Pool] = []
    if method != "bm25":
        query, passage = _vectors(query_vectors, passage_vectors, len(examples), len(corpus))
        near = _Near(examples, texts, query, passage[[first[text] for text in texts]], margin)
        pools.append(_vector_pool(examples, near, known, vector_top))
    elif margin is not None:
        raise InputError(f"margin: expected None with method 'bm25', which compares no vectors, got {margin}")
    if method != "vectors":
        # BM25's come first.
        pools.insert(0, _bm25_pool(examples, texts, known, bm25_top))
    mined = []
    for row, example in enumerate(tqdm(examples, desc="negatives", disable=len(examples) < 20_000)):
        candidates = [near.below(row, pool[row]) if near else pool[row] for pool in pools]
        chosen = _draw(candidates, example.query, texts, k, seed)
        if fill and len(chosen) < k:
            drawn = _random(example.query, chosen, known[example.query], len(texts), k - len(chosen), seed)
            chosen += near.below(row, drawn) if near else drawn
        mined.append(replace(example, negatives=tuple(texts[number] for number in chosen), scores=None))
    return mined


def student_vectors(
    student: "D2LLM", examples: Sequence[Example], corpus: Sequence[str], dtype: "torch.dtype | None" = None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A student's embeddings of queries and passages as :func:`mine_negatives` takes them.

    Args:
        dtype: of the student's computation, as in :meth:`d2llm.student.D2LLM.encode`.
    """
    queries = list(dict.fromkeys(example.query for example in examples))
    row = {query: number for number, query in enumerate(queries)}
    vectors = student.encode(queries, kind="query", dtype=dtype)
    of_examples = vectors[[row[example.query] for example in examples]]
    return of_examples, student.encode(corpus, kind="passage", dtype=dtype)


class _Known:
    """Numbers of the passages that must not be drawn for a query."""

    def __init__(self, positives: KnownPositives, texts: Sequence[str]) -> None:
        self._positives = positives
        self._numbers: dict[int, list[int]] = {}
        for number, text in enumerate(texts):
            self._numbers.setdefault(text_key(text), []).append(number)

    def __getitem__(self, query: str) -> set[int]:
        return {number for key in self._positives.of(query) for number in self._numbers.get(key, ())}


def _bm25_pool(examples: Sequence[Example], texts: Sequence[str], known: _Known, top: int) -> _Pool:
    queries = list(dict.fromkeys(example.query for example in examples))
    excluded = [known[query] for query in queries]
    depth = min(top + max(map(len, excluded), default=0), len(texts))
    scores, indices = BM25(texts).search(queries, depth)
    pool = {
        query: [
            int(i)
            for i, score in zip(indices[row], scores[row], strict=True)
            if score > 0 and int(i) not in excluded[row]
        ][:top]
        for row, query in enumerate(queries)
    }
    return [pool[example.query] for example in examples]


class _Near:
    """Cosines of queries with passages, and which of them a margin rules out.

    Raises:
        InputError: if there is a margin, and a positive is no passage.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        texts: Sequence[str],
        queries: NDArray[np.float32],
        passages: NDArray[np.float32],
        margin: float | None,
    ) -> None:
        self.queries, self.passages = _unit(queries), _unit(passages)
        self.ceilings = np.full(len(queries), np.inf, dtype=np.float32)
        if margin is None:
            return
        number = {text: i for i, text in enumerate(texts)}
        absent = next((example.positive for example in examples if example.positive not in number), None)
        if absent is not None:
            raise InputError(
                f"corpus: expected every positive in it, for the margin's sake, not found: {absent!r:.200}"
            )
        positives = self.passages[[number[example.positive] for example in examples]]
        self.ceilings[:] = (self.queries * positives).sum(axis=1) - margin

    def below(self, row: int, numbers: list[int]) -> list[int]:
        """Those of some passages that may be negatives of a query."""
        cosines = self.passages[numbers] @ self.queries[row]
        return [number for number, cosine in zip(numbers, cosines, strict=True) if cosine <= self.ceilings[row]]

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        """One (Np,) row of cosines a query, computed in blocks, -inf for what the margin rules out."""
        pairs = len(self.queries) * len(self.passages)
        block = max(1, _SCORES_AT_ONCE // len(self.passages))
        with tqdm(total=len(self.queries), desc="vector search", disable=pairs < _MANY_SCORES) as bar:
            for start in range(0, len(self.queries), block):
                scores = self.queries[start : start + block] @ self.passages.T
                scores[scores > self.ceilings[start : start + block, None]] = -np.inf
                yield from scores
                bar.update(len(scores))


def _vector_pool(examples: Sequence[Example], near: _Near, known: _Known, top: int) -> _Pool:
    pool: _Pool = []
    for example, scores in zip(examples, near, strict=True):
        excluded = known[example.query]
        best = top_indices(scores, min(top + len(excluded), len(scores)))
        pool.append([int(i) for i in best if int(i) not in excluded and scores[i] > -np.inf][:top])
    return pool


def _draw(pools: Sequence[list[int]], query: str, texts: Sequence[str], k: int, seed: int) -> list[int]:
    """Draw evenly from the pools, the first one first, without repeating a passage."""
    # Sorting by a hash of the text is a draw that does not depend on the pool's order or the corpus's.
    shuffled = [iter(sorted(pool, key=lambda number: _lot(seed, query, texts[number]))) for pool in pools]
    chosen: dict[int, None] = {}
    while shuffled and len(chosen) < k:
        for pool in list(shuffled):
            number = next((number for number in pool if number not in chosen), None)
            if number is None:
                shuffled.remove(pool)
            elif len(chosen) < k:
                chosen[number] = None
    return list(chosen)


def _random(query: str, chosen: Collection[int], excluded: set[int], size: int, count: int, seed: int) -> list[int]:
    taken = excluded.union(chosen)
    generator = random.Random(f"{seed}:{text_id(query)}")
    # Among count + len(taken) distinct passages at least count are free.
    draw = generator.sample(range(size), min(size, count + len(taken)))
    return [number for number in draw if number not in taken][:count]


def _lot(seed: int, query: str, passage: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{text_id(query)}\0{text_id(passage)}".encode()).digest()


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(lengths, np.finfo(np.float32).tiny)


def _vectors(
    query_vectors: ArrayLike | None, passage_vectors: ArrayLike | None, queries: int, passages: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    arrays = []
    for name, given, count in (
        ("query_vectors", query_vectors, queries),
        ("passage_vectors", passage_vectors, passages),
    ):
        if given is None:
            raise InputError(f"{name}: needed by this method, got None")
        array = np.asarray(given, dtype=np.float32)
        if array.ndim != 2 or len(array) != count:
            raise InputError(f"{name}: expected ({count}, D), got {array.shape}")
        if not np.isfinite(array).all():
            raise InputError(f"{name}: expected finite numbers, got NaN or inf")
        arrays.append(array)
    if arrays[0].shape[1] != arrays[1].shape[1]:
        widths = (arrays[0].shape[1], arrays[1].shape[1])
        raise InputError(f"passage_vectors: expected width {widths[0]} as query_vectors, got {widths[1]}")
    return arrays[0], arrays[1]


def _check(
    examples: Sequence[Example], corpus: Sequence[str], k: int, method: str, bm25_top: int, vector_top: int
) -> None:
    if method not in METHODS:
        raise InputError(f"method: expected one of {METHODS}, got {method!r}")
    for name, value in (("k", k), ("bm25_top", bm25_top), ("vector_top", vector_top)):
        if value < 1:
            raise InputError(f"{name}: expected at least 1, got {value}")
    check_texts(corpus, "corpus")
