"""BM25 over words, identifiers and Chinese: the lexical baseline and the first source of hard negatives."""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from d2llm.errors import InputError
from d2llm.texts import check_texts

# Scripts written without spaces, or with long compounds: Han, kana, Hangul.
_CJK = "\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
_RUN = re.compile(rf"[{_CJK}]+|[^\W{_CJK}]+")
_PART = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[^\W\d_A-Z]+|[A-Z]+|\d+")
_IS_CJK = re.compile(rf"[{_CJK}]")
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


class BM25:
    """Okapi BM25 with Lucene's idf over a fixed list of passages (bm25s underneath).

    The same passages and queries give the same scores in every process.

    Args:
        passages: Np texts; a text without any term is kept and scores 0.
        k1: saturation of term frequency.
        b: strength of length normalisation.

    Raises:
        InputError: for no passages, or a passage that is not a str.
    """

    def __init__(self, passages: Sequence[str], k1: float = 1.5, b: float = 0.75) -> None:
        passages = check_texts(passages, "passages", blank=True)
        self.size = len(passages)
        self._vocabulary: dict[str, int] = {}
        ids = [
            [self._vocabulary.setdefault(token, len(self._vocabulary)) for token in tokenize(passage)]
            for passage in tqdm(passages, desc="BM25 index", disable=self.size < _MANY_PASSAGES)
        ]
        # Imported here, for the index, which has other ways to search.
        import bm25s

        self._index = bm25s.BM25(k1=k1, b=b, method="lucene")
        if self._vocabulary:
            self._index.index((ids, self._vocabulary), create_empty_token=False, show_progress=False)

    def __len__(self) -> int:
        return self.size

    @property
    def nbytes(self) -> int:
        """Bytes of the inverted index, without its vocabulary."""
        return sum(part.nbytes for part in getattr(self._index, "scores", {}).values() if isinstance(part, np.ndarray))

    def scores(self, queries: Sequence[str]) -> NDArray[np.float32]:
        """Scores of every query against every passage.

        Args:
            queries: Nq texts; a query without any known term scores 0 everywhere.

        Returns:
            (Nq, Np) float32.

        Raises:
            InputError: for a query that is not a str.
        """
        rows = list(self._rows(queries))
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
        for row, scores in enumerate(self._rows(queries)):
            indices[row] = top_indices(scores, k)
            values[row] = scores[indices[row]]
        return values, indices

    def _rows(self, queries: Sequence[str]) -> Iterator[NDArray[np.float32]]:
        """One (Np,) row of scores a query; rows rather than a matrix keep a search small."""
        queries = check_texts(queries, "queries", none=True, blank=True)
        for query in tqdm(queries, desc="BM25", disable=len(queries) * self.size < _MANY_SCORES):
            ids = [self._vocabulary[token] for token in tokenize(query) if token in self._vocabulary]
            row = self._index.get_scores(ids) if ids else np.zeros(self.size)
            yield row.astype(np.float32, copy=False)


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
