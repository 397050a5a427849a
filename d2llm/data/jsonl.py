"""Training examples and corpora as JSON lines: the project's own formats."""

import difflib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from d2llm.data.example import Example
from d2llm.data.rows import PARQUET, STDIN, as_number, object_rows, parse_lazily, parse_rows, require_file, text_lines
from d2llm.errors import FormatError, InputError, shown
from d2llm.files import atomic_path
from d2llm.metadata import Metadata, check_metadata
from d2llm.tasks import ASYM

KEYS = ("query", "positive", "negatives", "task", "scores")
_ID_KEYS = ("id", "_id", "docid")


def read_examples(path: str | os.PathLike[str]) -> list[Example]:
    """All that :func:`iterate_examples` gives."""
    return list(iterate_examples(path))


def iterate_examples(path: str | os.PathLike[str]) -> Iterator[Example]:
    """Read training examples one by one, a JSON object a line, or a row of a ``.parquet`` file.

    Keys: ``query`` and ``positive`` (text); optional ``negatives`` (list of texts), ``task``
    ("asym", the default, or "sym") and ``scores`` (the teacher's raw [yes, no] logits for the
    positive and every negative). Other keys are ignored, unless they look like a misspelt one.

    Raises:
        MissingError: if there is no such file.
        FormatError: at the end, naming ``file:line: what`` for up to 20 faulty lines, or for an empty file.
    """
    path = Path(path)
    numbered = ((line, (line, row)) for line, row in object_rows(path))
    return parse_lazily(path, numbered, lambda row: [parse_example(*row)])


def write_examples(path: str | os.PathLike[str], examples: Iterable[Example]) -> int:
    """Write training examples so that ``read_examples`` gives them back; the file appears whole or not at all.

    Returns:
        How many were written.

    Raises:
        InputError: for no examples, or a score that is not finite; an existing file is then left as it was.
    """
    count = 0
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as handle:
        for count, example in enumerate(examples, start=1):  # noqa: B007 - counted for the caller
            handle.write(_line(example) + "\n")
        if not count:
            raise InputError("examples: expected at least one, got none")
    return count


def read_corpus(path: str | os.PathLike[str], prefix: str = "") -> list[tuple[str, str]]:
    """Read passages with their ids.

    ``.jsonl`` and ``.parquet``: objects with ``text``, optional ``title`` (put in front of the text) and ``id``,
    ``_id`` or ``docid`` (a text or integer; by default the line number). Any other file: one passage a line, its
    id the line number; blank lines are skipped. ``prefix`` stands before a line number that is an id.

    Returns:
        (id, text) pairs in file order, ids distinct.

    Raises:
        MissingError: if there is no such file.
        FormatError: naming ``file:line: what`` for up to 20 faulty lines, or for an empty file.
    """
    path = require_file(path)
    seen: dict[str, int] = {}

    def passage(row: tuple[int, Any]) -> Iterator[tuple[str, str]]:
        identifier, text, _ = _document(*row, prefix, ())
        if identifier in seen:
            raise FormatError(f"id: {identifier!r:.200} stands on line {seen[identifier]} already")
        seen[identifier] = row[0]
        yield identifier, text

    return parse_rows(path, _filled_rows(path), passage)


def read_documents(
    path: str | os.PathLike[str], prefix: str = "", fields: Sequence[str] | None = None
) -> Iterator[tuple[str, str, Metadata]]:
    """Read passages with their ids and metadata, one by one as they are asked for; equal ids are not looked for.

    Args:
        path: as for :func:`read_corpus`; ``-`` reads JSON lines from standard input.
        prefix: stands before a line number that is an id.
        fields: names of the keys, of a row or of the object under its key ``metadata``, that are its metadata; None
            takes all that is under ``metadata``.

    Raises:
        MissingError, FormatError: as :func:`read_corpus`, once the fault is come to.
    """
    path = Path(path) if Path(path) == STDIN else require_file(path)
    return parse_lazily(path, _filled_rows(path), lambda row: [_document(row[0], row[1], prefix, fields)])


def required_text(row: Mapping[str, Any], key: str) -> str:
    """The non-empty text under a key of a row.

    Raises:
        FormatError: if it is absent, blank or no text.
    """
    if key not in row:
        raise FormatError(f"{key}: missing, the row has {sorted(row)!s:.200}")
    if not isinstance(row[key], str) or not row[key].strip():
        raise FormatError(f"{key}: expected a non-empty text, got {shown(row[key])}")
    return row[key]


def optional_list(row: Mapping[str, Any], key: str) -> list[Any]:
    """The list under a key of a row; none is there where the key is absent or null.

    Raises:
        FormatError: if it is anything else.
    """
    value = row.get(key)
    if value is not None and not isinstance(value, list):
        raise FormatError(f"{key}: expected a list, got {shown(value)}")
    return value or []


def titled_text(row: Mapping[str, Any]) -> str:
    """The text of a passage with its title, if it has one, in front. BEIR has passages that are all title.

    Raises:
        FormatError: if text or title is no text, or both are blank.
    """
    title, text = row.get("title"), row.get("text")
    if title is not None and not isinstance(title, str):
        raise FormatError(f"title: expected a text, got {shown(title)}")
    if not (title or "").strip():
        return required_text(row, "text")
    if text is not None and not isinstance(text, str):
        raise FormatError(f"text: expected a text, got {shown(text)}")
    return f"{title} {text or ''}".strip()


def passage_id(value: Any) -> str:
    """An identifier of a passage, a text or an integer, as text.

    Raises:
        FormatError: if it is neither, or empty.
    """
    if not isinstance(value, (str, int)) or isinstance(value, bool) or value == "":
        raise FormatError(f"id: expected a text or an integer, got {shown(value)}")
    return str(value)


def parse_example(line: int, row: Mapping[str, Any] | FormatError) -> Example:
    """The example of a row, which may be the fault that reading it gave.

    Raises:
        FormatError, InputError: for that fault, and for a row that :func:`iterate_examples` does not take.
    """
    if isinstance(row, FormatError):
        raise row
    for key in row:
        if key not in KEYS and (meant := difflib.get_close_matches(key, KEYS, n=1, cutoff=0.88)):
            raise FormatError(f"{key:.200}: unknown key, {meant[0]!r} perhaps")
    query, positive = required_text(row, "query"), required_text(row, "positive")
    scores = row.get("scores")
    return Example(
        query=query,
        positive=positive,
        negatives=tuple(optional_list(row, "negatives")),
        task=ASYM if row.get("task") is None else row["task"],
        scores=None if scores is None else _logits(scores),
        line=line,
    )


def _logits(scores: Any) -> tuple[tuple[float, float], ...]:
    if not isinstance(scores, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in scores):
        raise FormatError(f"scores: expected a list of [yes, no] logits, got {shown(scores)}")
    numbers = [as_number(value) for pair in scores for value in pair]
    found = [number for number in numbers if number is not None]
    if len(found) < len(numbers):
        raise FormatError(f"scores: expected finite numbers, got {shown(scores)}")
    return tuple(zip(found[::2], found[1::2], strict=True))


def _line(example: Example) -> str:
    row: dict[str, Any] = {
        "query": example.query,
        "positive": example.positive,
        "negatives": list(example.negatives),
        "task": example.task,
    }
    if example.scores is not None:
        if not all(math.isfinite(value) for pair in example.scores for value in pair):
            raise InputError(f"scores: expected finite logits for query {example.query!r}, got {example.scores}")
        row["scores"] = [list(pair) for pair in example.scores]
    return json.dumps(row, ensure_ascii=False, allow_nan=False)


def _filled_rows(path: Path) -> Iterator[tuple[int, tuple[int, Any]]]:
    """Rows of a corpus that are not blank, each with its line number, as ``parse_rows`` takes them."""
    objects = path == STDIN or path.suffix.lower() in (".jsonl", PARQUET)
    rows: Iterable[tuple[int, Any]] = object_rows(path) if objects else text_lines(path)
    return ((line, (line, row)) for line, row in rows if not isinstance(row, str) or row.strip())


def _document(line: int, row: Any, prefix: str, fields: Sequence[str] | None) -> tuple[str, str, Metadata]:
    if isinstance(row, FormatError):
        raise row
    default = f"{prefix}{line}"
    if isinstance(row, str):
        return default, row.strip(), {}
    name = passage_id(next((row[key] for key in _ID_KEYS if key in row), default))
    given = row.get("metadata")
    if fields is not None:
        under = given if isinstance(given, Mapping) else {}
        given = {key: row[key] if key in row else under.get(key) for key in fields}
    return name, titled_text(row), {} if given is None else check_metadata(given, "metadata")
