"""Questions in everyday words over documented functions: held-out queries of another kind than docstrings."""

import json
import os
from collections.abc import Iterable
from pathlib import Path

from d2llm.data.docstrings import Function
from d2llm.data.validation import Validation
from d2llm.errors import FormatError, InputError, MissingError


def read_questions(path: str | os.PathLike[str], found: Iterable[Function]) -> Validation:
    """The questions of a JSONL file, to be searched for in the code of ``found``.

    A line has ``question`` and ``functions``, the names of those that answer it, such as ``pathlib.Path.exists``. Names
    that ``found`` has not, since versions of Python differ, are passed over, and so is a question left with none.

    Raises:
        MissingError: if there is no such file.
        FormatError: naming the line that is not such an object.
        InputError: where no question is left.
    """
    file = Path(path)
    if not file.is_file():
        raise MissingError(f"{file}: file not found")
    rows: dict[str, int] = {}
    answers: dict[str, set[int]] = {}
    for function in found:
        answers.setdefault(function.name, set()).add(rows.setdefault(function.code, len(rows)))
    relevant: dict[str, frozenset[int]] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        question, names = _parse(line, f"{file}, line {number}")
        if answering := frozenset(row for name in names for row in answers.get(name, ())):
            relevant[question] = answering
    if not relevant:
        raise InputError(f"found: expected functions that answer a question of {file}, got {len(answers)} others")
    return Validation(tuple(relevant), tuple(rows), tuple(relevant.values()))


def _parse(line: str, where: str) -> tuple[str, list[str]]:
    try:
        fields = json.loads(line)
        question, names = fields["question"], fields["functions"]
    except (ValueError, KeyError, TypeError):
        question = names = None
    if not isinstance(question, str) or not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise FormatError(f"{where}: expected an object with question and a list of functions, got {line!r:.200}")
    return question, names
