"""Questions in everyday words, and that the standard library answers those that ship with the tests."""

import json
import re
from pathlib import Path

import pytest

from d2llm.data.docstrings import Function
from d2llm.data.questions import read_questions
from d2llm.errors import FormatError, InputError, MissingError

EVERYDAY = Path(__file__).parent / "everyday.jsonl"
_FOUND = [
    Function("a.f", "Give one thing back.", "def f():", "def f(): 1"),
    Function("a.C.g", "Give two things back.", "def g(self):", "def g(self): 2"),
    Function("b.f", "Give one thing back.", "def f():", "def f(): 1"),
    # A property and its setter, say.
    Function("a.C.g", "Take two things instead.", "def g(self, x):", "def g(self, x): 3"),
]


def _file(folder: Path, *lines: object) -> Path:
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_a_name_stands_for_every_function_that_has_it(tmp_path: Path) -> None:
    file = _file(
        tmp_path,
        {"question": "one?", "functions": ["b.f", "absent.f"]},
        {"question": "nothing?", "functions": ["absent.f"]},
        {"question": "two?", "functions": ["a.C.g"]},
    )
    data = read_questions(file, _FOUND)
    assert data.passages == ("def f(): 1", "def g(self): 2", "def g(self, x): 3")
    assert data.queries == ("one?", "two?")
    assert data.relevant == (frozenset({0}), frozenset({1, 2}))


def test_what_is_no_question_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="absent"):
        read_questions(tmp_path / "absent", _FOUND)
    for line in ({"question": "one?"}, {"question": 1, "functions": []}, {"question": "?", "functions": [1]}, [], 3):
        with pytest.raises(FormatError, match="line 1: expected an object with question"):
            read_questions(_file(tmp_path, line), _FOUND)
    with pytest.raises(InputError, match="got 2 others"):
        read_questions(_file(tmp_path, {"question": "x?", "functions": ["absent"]}), _FOUND[:2])


def test_the_standard_library_answers_everyday_questions_in_other_words(
    library_functions: tuple[Function, ...],
) -> None:
    data = read_questions(EVERYDAY, library_functions)
    lines = [json.loads(line) for line in EVERYDAY.read_text(encoding="utf-8").splitlines()]
    # A version of Python lacks some of the functions, such as asyncio.timeout, and few questions hang on one.
    assert len(lines) >= 100
    assert len(data.queries) >= len(lines) - 5
    sentences = {re.sub(r"\W+", " ", function.query).strip().lower() for function in library_functions}
    assert not sentences.intersection(re.sub(r"\W+", " ", line["question"]).strip().lower() for line in lines)
