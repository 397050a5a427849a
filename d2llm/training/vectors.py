"""Embeddings computed once, for training the interaction module alone.

With the encoder left as it is, a step costs no forward pass of the LLM: batches can be ten times as large and bring
every hard negative that the teacher has scored.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from d2llm.data.example import Example
from d2llm.errors import InputError
from d2llm.student import D2LLM


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
