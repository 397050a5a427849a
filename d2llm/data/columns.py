"""What of every example is needed at once, as arrays: 17 bytes an example, whatever its texts."""

from abc import abstractmethod
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

from d2llm.data.example import Example, text_key
from d2llm.tasks import TASKS

#: The tasks in the order of their names, by which they are numbered here.
_BY_NAME = sorted(TASKS)


@dataclass(frozen=True)
class Columns:
    """Arrays over N examples, (N,) each."""

    #: :func:`~d2llm.data.example.text_key` of queries and positives.
    queries: NDArray[np.uint64]
    positives: NDArray[np.uint64]
    #: Numbers of the tasks in the order of their names.
    tasks: NDArray[np.uint8]

    def of(self, task: str) -> NDArray[np.bool_]:
        """Which examples are of a task."""
        return self.tasks == _BY_NAME.index(task)

    def count_tasks(self) -> dict[str, int]:
        """Examples of each task that has some, by name."""
        counts = np.bincount(self.tasks, minlength=len(_BY_NAME)).tolist()
        return {task: count for task, count in zip(_BY_NAME, counts, strict=True) if count}


class IndexedExamples(Sequence[Example]):
    """Examples that are made when they are asked for, and whose columns are known."""

    @property
    @abstractmethod
    def columns(self) -> Columns:
        """Of all examples."""

    @abstractmethod
    def read(self, row: int) -> Example:
        """The example of a row, which is within bounds."""

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        # A range knows what an index, a slice and a fault of either is.
        rows = range(len(self))[index]
        return self.read(rows) if isinstance(rows, int) else [self.read(row) for row in rows]


@dataclass(frozen=True, eq=False)
class _Changed(IndexedExamples):
    """Rows of other examples, changed as they are read."""

    examples: IndexedExamples
    change: Callable[[Example], Example]
    rows: NDArray[np.int64] | None

    def __len__(self) -> int:
        return len(self.examples) if self.rows is None else len(self.rows)

    @property
    def columns(self) -> Columns:
        held, rows = self.examples.columns, self.rows
        return held if rows is None else Columns(held.queries[rows], held.positives[rows], held.tasks[rows])

    def read(self, row: int) -> Example:
        return self.change(self.examples[row if self.rows is None else int(self.rows[row])])


def columns_of(examples: Iterable[Example]) -> Columns:
    """The columns of examples, which are read for them unless they are known."""
    if isinstance(examples, IndexedExamples):
        return examples.columns
    queries, positives, tasks = array("Q"), array("Q"), array("B")
    for example in examples:
        queries.append(text_key(example.query))
        positives.append(text_key(example.positive))
        tasks.append(_BY_NAME.index(example.task))
    return Columns(*(np.frombuffer(each, each.typecode) for each in (queries, positives, tasks)))


def changed(
    examples: Sequence[Example], change: Callable[[Example], Example], rows: NDArray[np.int64] | None = None
) -> Sequence[Example]:
    """Examples with a change that leaves query, positive and task as they are: made now of examples in memory, and of
    indexed ones whenever one is read.

    Args:
        examples: N of them.
        change: what is done to each.
        rows: those to keep, in that order; None keeps all.
    """
    if isinstance(examples, IndexedExamples):
        return _Changed(examples, change, rows)
    return [change(examples[row]) for row in (range(len(examples)) if rows is None else rows)]
