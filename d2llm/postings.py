"""Which passages hold which terms, as flat arrays that a file can hold: all that BM25 needs of texts."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# A term counts at most so often in a passage; what BM25 gives for it hardly grows from a hundred on.
_MOST = int(np.iinfo(np.int16).max)


def keys_of(names: Sequence[str]) -> NDArray[np.int64]:
    """A number of 64 bits for each of N texts, the same in every process: (N,).

    Two of ten million texts share one in one case of 400,000. A lone surrogate is taken as its three bytes.
    """
    encoded = (name.encode("utf-8", "surrogatepass") for name in names)
    digests = b"".join(hashlib.blake2b(each, digest_size=8).digest() for each in encoded)
    return np.frombuffer(digests, "<i8").astype(np.int64)


@dataclass(frozen=True)
class Postings:
    """The terms of n passages.

    ``terms`` (V,) int64: keys of the distinct terms, ascending. Passages ``rows[starts[i]:starts[i + 1]]``, int32
    ascending, hold term i, as often as ``counts``, int16, says; ``starts`` (V + 1,) int64. ``lengths`` (n,) int32: the
    number of terms of each passage, repeated ones included.
    """

    terms: NDArray[np.int64]
    starts: NDArray[np.int64]
    rows: NDArray[np.int32]
    counts: NDArray[np.int16]
    lengths: NDArray[np.int32]

    @classmethod
    def of(cls, passages: Iterable[Sequence[str]]) -> "Postings":
        """The postings of n passages, given as their terms."""
        vocabulary: dict[str, int] = {}
        numbers = [[vocabulary.setdefault(term, len(vocabulary)) for term in passage] for passage in passages]
        lengths = np.array([len(passage) for passage in numbers], np.int32)
        keys = keys_of(list(vocabulary))
        terms, ranks = np.unique(keys, return_inverse=True)
        flat = np.fromiter((number for passage in numbers for number in passage), np.int64, int(lengths.sum()))
        # One number a (term, passage), so that sorting groups terms and keeps passages ascending.
        pairs = ranks[flat] * len(numbers) + np.repeat(np.arange(len(numbers)), lengths)
        distinct, counts = np.unique(pairs, return_counts=True)
        held, rows = np.divmod(distinct, max(1, len(numbers)))
        starts = np.searchsorted(held, np.arange(len(terms) + 1))
        return cls(terms, starts, rows.astype(np.int32), np.minimum(counts, _MOST).astype(np.int16), lengths)

    def __len__(self) -> int:
        """n."""
        return len(self.lengths)

    @property
    def nbytes(self) -> int:
        """Bytes of all five."""
        return sum(each.nbytes for each in (self.terms, self.starts, self.rows, self.counts, self.lengths))

    def holders(self, key: int) -> tuple[NDArray[np.int32], NDArray[np.int16]]:
        """Passages that hold the term of a key, ascending, and how often."""
        place = int(np.searchsorted(self.terms, key))
        if place == len(self.terms) or self.terms[place] != key:
            return self.rows[:0], self.counts[:0]
        some = slice(int(self.starts[place]), int(self.starts[place + 1]))
        return self.rows[some], self.counts[some]
