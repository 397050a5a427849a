"""Score files by list and by task, or an error that names the field."""

from pathlib import Path
from typing import Any

import pytest

from d2llm.data.example import text_id
from d2llm.errors import InputError, MismatchError, MissingError
from d2llm.teacher.scores import ScoreTable
from d2llm.training.config import build_config
from d2llm.training.teachers import load_teachers

Q, A, B = map(text_id, ("q", "a", "b"))


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Two files of one teacher and one of another."""
    paths = [str(tmp_path / name) for name in ("one", "two", "other")]
    for path, passage, model in zip(paths, (A, B, A), ("m", "m", "n"), strict=True):
        ScoreTable({"model": model}, {(Q, passage): (1.0, 0.0)}).save(path)
    return paths


def test_several_files_of_one_teacher(files: list[str]) -> None:
    table = load_teachers(files[:2], {"model": "m"})
    assert isinstance(table, ScoreTable) and (Q, A) in table and (Q, B) in table
    with pytest.raises(MismatchError, match="model: made with"):
        load_teachers(files, {})


def test_a_teacher_for_each_task(files: list[str]) -> None:
    named = build_config(
        {"base_model": "m", "output_dir": "o", "data": {"teacher": {"sym": files[:2], "asym": files[2]}}}
    ).data.teacher
    assert isinstance(named, dict)
    teachers = load_teachers(named, {})
    assert isinstance(teachers, dict)
    assert {task: table.header["model"] for task, table in teachers.items()} == {"sym": "m", "asym": "n"}
    with pytest.raises(MismatchError, match="expected model 'm', got 'n'"):
        load_teachers(named, {"model": "m"})


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"rank": "x"}, "data.teacher: expected a mapping of tasks, sym or asym, to files, got"),
        ({}, "data.teacher: expected a mapping of tasks"),
        ([], r"data.teacher: expected a file of teacher scores or a list of them, got \[\]"),
        ({"sym": 3}, "data.teacher.sym: expected a file of teacher scores or a list of them, got 3"),
    ],
)
def test_what_names_no_file_is_refused(named: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_teachers(named, {})
    with pytest.raises(InputError, match="data.teacher: expected"):
        build_config({"base_model": "m", "output_dir": "o", "data": {"teacher": 3}})


def test_an_absent_file_is_named(files: list[str]) -> None:
    for named in ([files[0], "absent"], {"sym": "absent"}):
        with pytest.raises(MissingError, match="absent"):
            load_teachers(named, {})
