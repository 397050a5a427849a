"""BM25 over words, identifiers and Chinese: the lexical baseline and the first source of hard negatives."""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from d2llm.errors import InputError
from d2llm.postings import Postings, keys_of
from d2llm.texts import check_texts

# Scripts written without spaces, or with long compounds: Han, kana, Hangul.
_CJK = "\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
_RUN = re.compile(rf"[{_CJK}]+|[^\W{_CJK}]+")
_PART = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[^\W\d_A-Z]+|[A-Z]+|\d+")
_IS_CJK = re.compile(rf"[{_CJK}]")
# Passages whose terms are sorted at a time: sorting takes many times the room of what comes of it.
_AT_ONCE = 16_384
# From so many passages, or scores, on it takes seconds, and progress is shown.
_MANY_PASSAGES = 20_000
_MANY_SCORES = 10_000_000


def tokenize(text: str) -> list[str]:
    """Split a text into search terms, in order.

    Words are case-folded. Identifiers yield themselves and their parts: ``parse_HTTPHeader2`` gives
    ``parse_httpheader2, parse, http, header, 2``. Runs of Chinese, Japanese or Korean characters
    yield single characters and pairs of neighbours. Compatibility forms (full-width letters,
    ligatures) are unified first (Unicode NFKC).

    Returns:
        list of str, empty when the text holds no letter or digit.
    """
    tokens: list[str] = []
    for run in _RUN.findall(unicodedata.normalize("NFKC", text)):
        if _IS_CJK.match(run):
            tokens.extend(run)
            tokens.extend(first + second for first, second in pairwise(run))
            continue
        parts = _PART.findall(run)
        if parts and parts != [run]:
            # A name such as __init__ has one part; underscores alone do not make a second term.
            whole = run.strip("_").casefold()
            tokens.extend([whole] * (len(parts) > 1))
            tokens.extend(part.casefold() for part in parts)
        elif parts:
            tokens.append(run.casefold())
    return tokens


class Matches(NamedTuple):
    """What shares a term with a query: ``rows`` (M,) int64, ascending, and ``scores`` (M,) float32 above 0."""

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]

    def at(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Scores of rows (C,), 0 of those that are not among these."""
        if not len(self.rows):
            return np.zeros(len(rows), np.float32)
        places = np.minimum(np.searchsorted(self.rows, rows), len(self.rows) - 1)
        return np.where(self.rows[places] == rows, self.scores[places], np.float32(0))

    def of_all(self, count: int) -> NDArray[np.float32]:
        """Scores of every row (count,), 0 of those that are not among these."""
        scores = np.zeros(count, np.float32)
        scores[self.rows] = self.scores
        return scores

    def best(self, k: int) -> NDArray[np.int64]:
        """The k rows of the highest scores, best first, the lower first among equals; fewer where there are fewer."""
        few = min(k, len(self.rows))
        return self.rows[top_indices(self.scores, few)] if few else self.rows[:0]

    def ranks(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Ranks from 1 of rows, 0 of those that are not among these."""
        counts = [int((self.scores > score).sum()) + 1 if score else 0 for score in self.at(rows)]
        return np.array(counts, np.int64)


class BM25:
    """Okapi BM25 with Lucene's idf over a fixed list of passages.

    The same passages and queries give the same scores in every process, whatever parts the passages come in.

    Args:
        passages: Np texts; a text without any term is kept and scores 0.
        k1: saturation of term frequency.
        b: strength of length normalisation.

    Raises:
        InputError: for no passages, or a passage that is not a str.
    """

    def __init__(self, passages: Sequence[str], k1: float = 1.5, b: float = 0.75) -> None:
        passages = check_texts(passages, "passages", blank=True)
        bar = iter(tqdm(passages, desc="BM25 index", disable=len(passages) < _MANY_PASSAGES))
        starts = range(0, len(passages), _AT_ONCE)
        self._read([Postings.of(map(tokenize, islice(bar, _AT_ONCE))) for _ in starts], None, k1, b)

    @classmethod
    def over(
        cls, parts: Sequence[Postings], kept: NDArray[np.bool_] | None = None, k1: float = 1.5, b: float = 0.75
    ) -> "BM25":
        """BM25 over passages whose terms were read before, part after part.

        Args:
            parts: Np passages together, at least one.
            kept: (Np,), which of them count, at least one; None for all. The others are as if they were not there,
                except that they keep their numbers: they score minus infinity.
            k1, b: as above.
        """
        made = cls.__new__(cls)
        made._read(parts, kept, k1, b)
        return made

    def _read(self, parts: Sequence[Postings], kept: NDArray[np.bool_] | None, k1: float, b: float) -> None:
        self._parts, self._kept = parts, kept
        self._starts = np.cumsum([0, *map(len, parts)])
        self.size = int(self._starts[-1])
        lengths = np.concatenate([part.lengths for part in parts])
        count = lengths if kept is None else lengths[kept]
        self._live = len(count)
        # Without any term there is no average, and nothing to be scored.
        norms = k1 * (1 - b + b * lengths / (count.mean(dtype=np.float64) or 1))
        self._norms = norms.astype(np.float32)

    def __len__(self) -> int:
        return self.size

    @property
    def nbytes(self) -> int:
        """Bytes of the inverted index."""
        return sum(part.nbytes for part in self._parts)

    def scores(self, queries: Sequence[str]) -> NDArray[np.float32]:
        """Scores of every query against every passage.

        Args:
            queries: Nq texts; a query without any known term scores 0 everywhere.

        Returns:
            (Nq, Np) float32.

        Raises:
            InputError: for a query that is not a str.
        """
        rows = list(self.rows(queries))
        return np.stack(rows) if rows else np.zeros((0, self.size), dtype=np.float32)

    def search(self, queries: Sequence[str], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The k best passages of every query.

        Args:
            queries: Nq texts.
            k: how many passages, 1 to Np.

        Returns:
            scores (Nq, k) float32 and indices (Nq, k) int64, best first, the lower index first
            among equals. Passages that share no term with the query fill up with score 0.

        Raises:
            InputError: for a k out of range, or a query that is not a str.
        """
        if not isinstance(k, int) or not 1 <= k <= self.size:
            raise InputError(f"k: expected an integer from 1 to the number of passages ({self.size}), got {k!r}")
        values = np.empty((len(queries), k), dtype=np.float32)
        indices = np.empty((len(queries), k), dtype=np.int64)
        for row, scores in enumerate(self.rows(queries)):
            indices[row] = top_indices(scores, k)
            values[row] = scores[indices[row]]
        return values, indices

    def rows(self, queries: Sequence[str]) -> Iterator[NDArray[np.float32]]:
        """One (Np,) row of ``scores`` a query; rows rather than a matrix keep a search small."""
        queries = check_texts(queries, "queries", none=True, blank=True)
        for query in tqdm(queries, desc="BM25", disable=len(queries) * self.size < _MANY_SCORES):
            row = self._row(query)
            if self._kept is not None:
                row[~self._kept] = -np.inf
            yield row

    def matches(self, query: str) -> Matches:
        """The passages that share a term with a query, in time that grows with them rather than with all."""
        row = self._row(query)
        rows = np.flatnonzero(row).astype(np.int64, copy=False)
        if self._kept is not None:
            rows = rows[self._kept[rows]]
        return Matches(rows, row[rows])

    def _row(self, query: str) -> NDArray[np.float32]:
        """(Np,) scores, of passages that do not count too."""
        row = np.zeros(self.size, np.float32)
        # A term that a query repeats counts as often.
        for key in keys_of(tokenize(query)).tolist():
            self._add(row, key)
        return row

    def _add(self, row: NDArray[np.float32], key: int) -> None:
        """Add what one term gives to each passage."""
        found = [part.holders(key) for part in self._parts]
        rows = np.concatenate([some + start for (some, _), start in zip(found, self._starts[:-1], strict=True)])
        counts = np.concatenate([some for _, some in found]).astype(np.float32)
        holders = len(rows) if self._kept is None else int(self._kept[rows].sum())
        idf = np.float32(np.log(1 + (self._live - holders + 0.5) / (holders + 0.5)))
        row[rows] += idf * (counts / (counts + self._norms[rows]))


def top_indices(scores: NDArray[np.floating], k: int) -> NDArray[np.int64]:
    """Indices of the k highest scores: (Np,) float -> (k,) int64, best first, lower index first among equals.

    Linear in Np: only the k kept are sorted.

    Raises:
        InputError: unless 1 <= k <= Np.
    """
    if not 1 <= k <= len(scores):
        raise InputError(f"k: expected 1 to {len(scores)}, got {k}")
    threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
    above = np.flatnonzero(scores > threshold)
    equal = np.flatnonzero(scores == threshold)[: k - len(above)]
    # Both lists ascend in index and a stable sort keeps that order among equals.
    kept = np.concatenate([above, equal])
    return kept[np.argsort(-scores[kept], kind="stable")].astype(np.int64, copy=False)
