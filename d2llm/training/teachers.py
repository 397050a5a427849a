"""The score files of a run: one or several of one teacher, or a teacher for each task."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from d2llm.errors import InputError
from d2llm.tasks import TASKS
from d2llm.training.collator import Scores, check_header


def load_teachers(named: str | list[str] | Mapping[str, Any], header: Mapping[str, Any]) -> Scores | dict[str, Scores]:
    """The scores that ``data.teacher`` names: of one teacher, or by task.

    Args:
        named: a file, several files of one teacher, or a mapping of tasks to either.
        header: fields that every file's header must have.

    Raises:
        InputError: for another task, or for what names no file.
        MissingError, FormatError: naming a file that is absent, truncated or altered.
        MismatchError: if files of one teacher were made by several, or a header has other fields.
    """
    if not isinstance(named, Mapping):
        return _load(named, "data.teacher", header)
    unknown = [task for task in named if task not in TASKS]
    if unknown or not named:
        raise InputError(
            f"data.teacher: expected a mapping of tasks, {' or '.join(TASKS)}, to files, got {dict(named)}"
        )
    return {task: _load(files, f"data.teacher.{task}", header) for task, files in named.items()}


def _load(named: Any, field: str, header: Mapping[str, Any]) -> Scores:
    # Planning a teacher's in-batch scores needs this package; imported here, neither needs the other to load.
    from d2llm.teacher.scores import ScoreTable
    from d2llm.teacher.scoring import collect

    files = [named] if isinstance(named, str) else named
    if not isinstance(files, list) or not files or not all(isinstance(file, str) for file in files):
        raise InputError(f"{field}: expected a file of teacher scores or a list of them, got {named!r}")
    table = ScoreTable.load(files[0]) if len(files) == 1 else collect([Path(file) for file in files])
    check_header(table, header)
    return table
