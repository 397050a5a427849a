"""Passages that are known to be relevant to a query, and so are never its negatives."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from d2llm.data.columns import columns_of
from d2llm.data.example import Example, text_key
from d2llm.errors import InputError
from d2llm.tasks import SYM


class KnownPositives:
    """The positives of every query of a data set, by :func:`text_key`.

    A query is its own positive. In the symmetric task a pair counts either way round: the queries of a passage are its
    positives too. Two texts of one key, by a chance of 1 in 10^5 among twenty million, would be taken for one.

    Args:
        examples: all of the data set, not of a batch.
        further: more known positives, {query text: passage texts}.
    """

    def __init__(
        self, examples: Iterable[Example], further: Mapping[str, Collection[str]] = MappingProxyType({})
    ) -> None:
        known = columns_of(examples)
        both = known.of(SYM)
        named = [(text_key(query), text_key(passage)) for query, passages in further.items() for passage in passages]
        more = np.array(named, np.uint64).reshape(-1, 2)
        queries = np.concatenate([known.queries, known.positives[both], more[:, 0]])
        order = np.argsort(queries)
        self._queries = queries[order]
        self._passages = np.concatenate([known.positives, known.queries[both], more[:, 1]])[order]

    def of(self, query: str) -> frozenset[int]:
        """Keys of the passages that are no negatives of a query text."""
        key = text_key(query)
        first, end = (int(np.searchsorted(self._queries, np.uint64(key), side)) for side in ("left", "right"))
        return frozenset((key, *self._passages[first:end].tolist()))

    def mask(self, queries: Sequence[str], passages: Sequence[str]) -> np.ndarray:
        """In-batch columns that are no negatives.

        Args:
            queries: B texts.
            passages: B texts, the positive of each query.

        Returns:
            (B, B) bool, true at (i, j) where i != j and passage j must not count against query i.

        Raises:
            InputError: if the two sequences differ in length.
        """
        if len(queries) != len(passages):
            raise InputError(f"passages: expected {len(queries)}, one a query, got {len(passages)}")
        columns: dict[int, list[int]] = {}
        for j, passage in enumerate(passages):
            columns.setdefault(text_key(passage), []).append(j)
        mask = np.zeros((len(queries), len(passages)), dtype=bool)
        for i, query in enumerate(queries):
            for key in self.of(query) & columns.keys():
                mask[i, columns[key]] = True
        np.fill_diagonal(mask, False)
        return mask

    def clean(self, example: Example) -> Example:
        """The example with those of its hard negatives that are no known positives, each text once."""
        seen = set(self.of(example.query))
        kept = []
        for k, negative in enumerate(example.negatives):
            key = text_key(negative)
            if key not in seen:
                seen.add(key)
                kept.append(k)
        return example.with_negatives(kept)
