"""Held-out queries and what they are searched in: what early stopping watches and a comparison measures."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from d2llm.data.example import Example
from d2llm.errors import InputError
from d2llm.tasks import ASYM, task_index
from d2llm.texts import check_texts


@dataclass(frozen=True)
class Validation:
    """Held-out queries, the passages to search and which of them are relevant.

    Raises:
        InputError: for an empty text, a query without a relevant passage, or an index beyond the passages.
    """

    queries: tuple[str, ...]
    passages: tuple[str, ...]
    #: For each query, the indices of its relevant passages.
    relevant: tuple[frozenset[int], ...]
    task: str = ASYM

    def __post_init__(self) -> None:
        check_texts(self.queries, "queries")
        check_texts(self.passages, "passages")
        task_index(self.task)
        if len(self.relevant) != len(self.queries):
            raise InputError(f"relevant: expected {len(self.queries)} sets, one a query, got {len(self.relevant)}")
        for i, indices in enumerate(self.relevant):
            if not indices or not all(0 <= index < len(self.passages) for index in indices):
                raise InputError(
                    f"relevant[{i}]: expected indices below {len(self.passages)}, at least one, got {set(indices)}"
                )

    @classmethod
    def from_examples(cls, examples: Iterable[Example]) -> "Validation":
        """Each distinct query against the positives and hard negatives of all of them.

        Raises:
            InputError: for no examples, or for examples of both tasks.
        """
        examples = list(examples)
        tasks = {example.task for example in examples}
        if len(tasks) != 1:
            raise InputError(f"validation examples: expected examples of one task, got {sorted(tasks) or 'none'}")
        rows = {text: i for i, text in enumerate(dict.fromkeys(p for e in examples for p in e.passages))}
        positives: dict[str, set[int]] = {}
        for example in examples:
            positives.setdefault(example.query, set()).add(rows[example.positive])
        return cls(tuple(positives), tuple(rows), tuple(map(frozenset, positives.values())), tasks.pop())

    @classmethod
    def by_task(cls, examples: Iterable[Example]) -> "dict[str, Validation]":
        """:meth:`from_examples` for each task that the examples have, which do not share one figure.

        Raises:
            InputError: for no examples.
        """
        examples = list(examples)
        tasks = sorted({example.task for example in examples})
        if not tasks:
            raise InputError("validation examples: expected at least one, got none")
        return {task: cls.from_examples(example for example in examples if example.task == task) for task in tasks}

    def mean_reciprocal_rank(self, scores: np.ndarray) -> float:
        """Mean of :meth:`reciprocal_ranks`, whose arguments and errors it has."""
        return float(self.reciprocal_ranks(scores).mean())

    def reciprocal_ranks(self, scores: np.ndarray) -> np.ndarray:
        """1 / (rank of the best relevant passage) of every query, (Nq,) float64.

        Of equal scores, the lower index ranks first.

        Args:
            scores: (Nq, Np) float.

        Raises:
            InputError: for another shape, or for NaN.
        """
        if scores.shape != (len(self.queries), len(self.passages)) or np.isnan(scores).any():
            raise InputError(
                f"scores: expected ({len(self.queries)}, {len(self.passages)}) without NaN, got shape {scores.shape}"
            )
        order = np.argsort(-scores, axis=1, kind="stable")
        hits = [np.isin(row, list(relevant)).argmax() for row, relevant in zip(order, self.relevant, strict=True)]
        return 1 / (1 + np.array(hits))
