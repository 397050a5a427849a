"""Passages that are known to be relevant to a query, and so are never its negatives."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from d2llm.data.example import Example, text_id
from d2llm.errors import InputError
from d2llm.tasks import SYM


def text_key(text: str) -> str:
    """Identifier of a text up to its white space."""
    return text_id(" ".join(text.split()))


class KnownPositives:
    """The positives of every query of a data set, by :func:`text_key`.

    A query is its own positive. In the symmetric task a pair counts either way round: the queries of a passage are its
    positives too.

    Args:
        examples: all of the data set, not of a batch.
        further: more known positives, {query text: passage texts}.
    """

    def __init__(
        self, examples: Iterable[Example], further: Mapping[str, Collection[str]] = MappingProxyType({})
    ) -> None:
        self._positives: dict[str, set[str]] = {}
        for query, passages in further.items():
            self._positives.setdefault(text_key(query), set()).update(map(text_key, passages))
        for example in examples:
            query, passage = text_key(example.query), text_key(example.positive)
            self._positives.setdefault(query, set()).add(passage)
            if example.task == SYM:
                self._positives.setdefault(passage, set()).add(query)

    def of(self, query: str) -> frozenset[str]:
        """Keys of the passages that are no negatives of a query text."""
        key = text_key(query)
        return frozenset(self._positives.get(key, ())) | {key}

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
        columns: dict[str, list[int]] = {}
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
