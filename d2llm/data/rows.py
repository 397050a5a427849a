"""Rows of text files, with every fault reported as file:line."""

import csv
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from d2llm.errors import FormatError, InputError, MissingError, shown
from d2llm.files import parse_json
from d2llm.requirements import require

#: What stands for standard input in place of a file.
STDIN = Path("-")
#: How files of columns end.
PARQUET = ".parquet"
#: Rows of such a file that are held at once.
_AT_ONCE = 1024
#: Bytes of a file that are looked through at once.
_PART = 1 << 17
#: Faults listed in one error.
FAULTS_SHOWN = 20
_PROGRESS_FROM_BYTES = 50_000_000
_SURROGATE = re.compile("[\ud800-\udfff]")
_T = TypeVar("_T")

#: A line number and the parsed row, or the fault that kept it from being parsed.
Numbered = Iterable[tuple[int, Any]]


def parse_rows(path: Path, rows: Numbered, parse: Callable[[Any], Iterable[_T]]) -> list[_T]:
    """Parse all rows of a file, each into any number of results, collecting faults on the way.

    Args:
        path: the file that the rows come from, for messages.
        rows: (line number, row) pairs; a row may be the ``FormatError`` that reading it gave.
        parse: called with a row; an ``InputError`` or ``FormatError`` it raises becomes a fault.

    Raises:
        FormatError: naming ``file:line: what`` for up to 20 faults, if there is any, or if there is no row.
    """
    return list(parse_lazily(path, rows, parse))


def parse_lazily(path: Path, rows: Numbered, parse: Callable[[Any], Iterable[_T]]) -> Iterator[_T]:
    """As :func:`parse_rows`, each result as soon as it is asked for; none comes after the first fault.

    Faults are raised at the end, all at once: what came before them was not all there is.
    """
    faults: list[str] = []
    count = faulty = 0
    for line, row in rows:
        count += 1
        try:
            if isinstance(row, FormatError):
                raise row
            results = list(parse(row))
        except (InputError, FormatError) as error:
            faulty += 1
            if faulty <= FAULTS_SHOWN:
                faults.append(f"{path}:{line}: {error}")
            continue
        if not faulty:
            yield from results
    if faulty:
        more = [f"... and {faulty - FAULTS_SHOWN} more"] if faulty > FAULTS_SHOWN else []
        raise FormatError("\n".join(faults + more))
    if not count:
        raise FormatError(f"{path}: expected rows, the file has none")


def json_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any] | FormatError]]:
    """(line number, object) for every line of a JSONL file that is not blank.

    Raises:
        MissingError: if there is no such file.
    """
    for number, line in text_lines(path):
        if isinstance(line, FormatError):
            yield number, line
        elif line.strip():
            yield number, json_object(line)


def object_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any] | FormatError]]:
    """(number, object) for every row of a file of objects: the columns of ``.parquet``, or the lines of a JSONL file.

    Raises:
        MissingError: if there is no such file.
        FormatError: for a file that is no Parquet.
        ModuleNotFoundError: for Parquet without pyarrow, saying how to install it.
    """
    return _parquet_rows(path) if path.suffix.lower() == PARQUET else json_rows(path)


def table_rows(path: Path) -> Iterator[tuple[int, list[str] | FormatError]]:
    """(line number, cells) for every row of a table, the header included.

    ``.csv`` is read with commas and quotes; anything else is split at tabs, and quotes in it are
    plain characters, as in the published STS and NLI files.

    Raises:
        MissingError: if there is no such file.
    """
    if path.suffix.lower() != ".csv":
        for number, line in text_lines(path):
            if isinstance(line, FormatError):
                yield number, line
            elif line.strip():
                yield number, line.split("\t")
        return
    # csv must see the line ends that stand within quotes, so decoding cannot go on line by line.
    require_file(path)
    with open(path, encoding="utf-8-sig", newline="") as handle:
        reader = csv.reader(handle, strict=True)
        try:
            yield from ((reader.line_num, row) for row in reader if any(row))
        except UnicodeDecodeError:
            yield reader.line_num + 1, FormatError("expected UTF-8")
        except csv.Error as error:
            yield reader.line_num, FormatError(f"not valid CSV ({error})")


def text_lines(path: Path) -> Iterator[tuple[int, str | FormatError]]:
    """(line number from 1, text without its line end) for every line of a UTF-8 file, or of standard input for ``-``.

    Raises:
        MissingError: if there is no such file.
    """
    if path == STDIN:
        yield from _decoded(sys.stdin.buffer)
        return
    require_file(path)
    size = path.stat().st_size
    with (
        open(path, "rb") as handle,
        tqdm(total=size, desc=path.name, unit="B", unit_scale=True, disable=size < _PROGRESS_FROM_BYTES) as bar,
    ):
        for line in _decoded(handle):
            bar.update(handle.tell() - bar.n)
            yield line


def line_starts(path: Path) -> NDArray[np.int64]:
    """Where the lines of a file begin, in bytes: (N,), one more than there are lines where the last one is ended."""
    found, read = [np.zeros(1, np.int64)], 0
    with open(path, "rb") as handle:
        while part := handle.read(_PART):
            found.append(np.flatnonzero(np.frombuffer(part, np.uint8) == ord("\n")) + (read + 1))
            read += len(part)
    return np.concatenate(found)


def json_object(line: str) -> Mapping[str, Any] | FormatError:
    """The JSON object on a line, or the fault in it."""
    try:
        row = parse_json(line)
    except FormatError as error:
        return error
    if not isinstance(row, dict):
        return FormatError(f"expected a JSON object, got {type(row).__name__}")
    # JSON can spell half a surrogate pair, which is no text: it cannot be hashed or written again.
    if "\\ud" in line.lower() and _SURROGATE.search(json.dumps(row, ensure_ascii=False)):
        return FormatError("expected text, got half of a surrogate pair (\\ud800 to \\udfff)")
    return row


def require_file(path: str | os.PathLike[str]) -> Path:
    """The path, if it is a file.

    Raises:
        MissingError: otherwise.
    """
    if not Path(path).is_file():
        raise MissingError(f"{path}: file not found")
    return Path(path)


def as_number(value: Any) -> float | None:
    """A number of a row, or None if it is none, or not finite, or beyond what a float holds."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def parse_number(cell: str) -> float | None:
    """The number that a cell of a table spells, likewise. Unlike Python, tables have no underscores in numbers."""
    try:
        return None if "_" in cell else as_number(float(cell))
    except ValueError:
        return None


def check_distinct(header: Sequence[str]) -> None:
    """Make sure that no name stands twice in the header of a table.

    Raises:
        FormatError: naming one that does.
    """
    for number, name in enumerate(header):
        if name in header[:number]:
            raise FormatError(f"columns: expected distinct names, got {name!r:.200} twice")


def _decoded(lines: Iterable[bytes]) -> Iterator[tuple[int, str | FormatError]]:
    for number, line in enumerate(lines, start=1):
        try:
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            yield number, FormatError("expected UTF-8")


def _parquet_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(row number from 1, object) for every row, a batch at a time."""
    require_file(path)
    require("pyarrow", "parquet")
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path, memory_map=True) as file:
            rows = (row for batch in file.iter_batches(_AT_ONCE) for row in batch.to_pylist())
            few = path.stat().st_size < _PROGRESS_FROM_BYTES
            yield from enumerate(tqdm(rows, path.name, file.metadata.num_rows, disable=few), start=1)
    except pa.ArrowException as error:
        raise FormatError(f"{path}: not a Parquet file, or damaged ({shown(str(error))})") from None
