"""Examples that stay in their file: ten million of them take 300 MB of memory, whatever their texts."""

import os
from array import array
from collections.abc import Iterator, Sequence

import numpy as np

from d2llm.data.columns import Columns, IndexedExamples, columns_of
from d2llm.data.example import Example
from d2llm.data.jsonl import iterate_examples, parse_example, read_examples
from d2llm.data.rows import PARQUET, json_object, line_starts, require_file
from d2llm.errors import MismatchError

#: Bytes of a file up to which its examples are held in memory, where reading one takes no time.
IN_MEMORY = 64_000_000


def open_examples(path: str | os.PathLike[str]) -> Sequence[Example]:
    """The examples of a file, in memory where they are few, and else read one by one as they are asked for.

    Parquet is held in memory whatever its size; ``d2llm data convert`` makes JSON lines of it.

    Raises:
        MissingError, FormatError: as :func:`~d2llm.data.jsonl.iterate_examples`, before any example is asked for.
    """
    path = require_file(path)
    few = path.stat().st_size <= IN_MEMORY or path.suffix.lower() == PARQUET
    return read_examples(path) if few else ExampleFile(path)


class ExampleFile(IndexedExamples):
    """The examples of a JSONL file, which is read through once to check it and to note where each line begins.

    Every example is read by a file handle of its own, so that processes and threads may share it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Args: the file, which must stay as it is.

        Raises:
            MissingError, FormatError: as :func:`~d2llm.data.jsonl.iterate_examples`.
        """
        self.path = require_file(path)
        self._state = _state(self.path.stat())
        lines = array("I")

        def noted() -> Iterator[Example]:
            for example in iterate_examples(self.path):
                lines.append(example.line or 0)
                yield example

        self._columns = columns_of(noted())
        self._lines = np.frombuffer(lines, lines.typecode)
        self._starts = line_starts(self.path)[self._lines - 1]

    def __len__(self) -> int:
        return len(self._lines)

    @property
    def columns(self) -> Columns:
        """Of all examples."""
        return self._columns

    def read(self, row: int) -> Example:
        """The example of a row.

        Raises:
            MismatchError: if the file has changed since it was opened.
        """
        with open(self.path, "rb") as handle:
            if _state(os.fstat(handle.fileno())) != self._state:
                raise MismatchError(f"{self.path}: expected the examples to stay as they are, the file has changed")
            handle.seek(self._starts[row])
            # A mark of byte order at the start of a file is no JSON.
            text = handle.readline().decode("utf-8-sig")
        return parse_example(int(self._lines[row]), json_object(text))


def _state(found: os.stat_result) -> tuple[int, int]:
    return found.st_size, found.st_mtime_ns
