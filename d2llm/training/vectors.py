"""Embeddings computed once, for training the interaction module alone.

With the encoder left as it is, a step costs no forward pass of the LLM: batches can be ten times as large and bring
every hard negative that the teacher has scored.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from d2llm.data.example import Example
from d2llm.errors import InputError
from d2llm.student import D2LLM


class Computed(Protocol):
    """What was computed of a run's texts before it, once; :class:`TextVectors` and
    :class:`~d2llm.training.states.TokenStates` are such."""

    def inputs(self, queries: Sequence[str], passages: Sequence[str]) -> dict[str, Tensor]:
        """What stands in a batch in place of tokens, under the names of :meth:`D2LLM.forward`."""

    def embeddings(
        self, student: D2LLM, queries: Sequence[str], passages: Sequence[str], dtype: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor]:
        """(N, D) embeddings of queries and passages by the student as it is now."""


class TextVectors:
    """Query and passage embeddings by text.

    Args:
        queries: distinct query texts and their vectors (N, D).
        passages: distinct passage texts and their vectors (N, D).

    Raises:
        InputError: for another number of vectors than of texts.
    """

    def __init__(self, queries: tuple[Sequence[str], Tensor], passages: tuple[Sequence[str], Tensor]) -> None:
        self._rows: dict[str, dict[str, int]] = {}
        self._vectors: dict[str, Tensor] = {}
        for kind, (texts, vectors) in (("query", queries), ("passage", passages)):
            if len(texts) != len(vectors):
                raise InputError(f"{kind} vectors: expected {len(texts)}, one a text, got {len(vectors)}")
            self._rows[kind] = {text: row for row, text in enumerate(texts)}
            self._vectors[kind] = vectors

    @classmethod
    def encode(
        cls,
        student: D2LLM,
        examples: Iterable[Example],
        queries: Iterable[str] = (),
        passages: Iterable[str] = (),
    ) -> "TextVectors":
        """Embeddings of every text of ``examples`` and of further texts."""
        examples = list(examples)
        asked = list(dict.fromkeys([*queries, *(example.query for example in examples)]))
        held = list(dict.fromkeys([*passages, *(text for example in examples for text in example.passages)]))
        return cls(
            (asked, student.encode(asked, kind="query", convert_to="torch").cpu()),
            (held, student.encode(held, kind="passage", convert_to="torch").cpu()),
        )

    def inputs(self, queries: Sequence[str], passages: Sequence[str]) -> dict[str, Tensor]:
        """What stands in a batch in place of tokens: the embeddings."""
        return {"query_vectors": self.queries(queries), "passage_vectors": self.passages(passages)}

    def embeddings(
        self, student: D2LLM, queries: Sequence[str], passages: Sequence[str], dtype: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor]:
        """The embeddings as they are, whatever the student."""
        return self.queries(queries), self.passages(passages)

    def queries(self, texts: Sequence[str]) -> Tensor:
        """(N, D) embeddings of queries."""
        return self._look_up("query", texts)

    def passages(self, texts: Sequence[str]) -> Tensor:
        """(N, D) embeddings of passages."""
        return self._look_up("passage", texts)

    def _look_up(self, kind: str, texts: Sequence[str]) -> Tensor:
        rows = self._rows[kind]
        missing = [text for text in texts if text not in rows]
        if missing:
            raise InputError(f"{kind} vectors: {len(missing)} texts were not encoded, such as {missing[0][:60]!r}")
        return self._vectors[kind][torch.tensor([rows[text] for text in texts])]
