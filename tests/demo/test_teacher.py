"""What the shipped teacher is tuned on: mistakes of its student and of BM25, and chance."""

import pytest

from d2llm.data.example import Example
from d2llm.demo import teacher
from d2llm.demo.recipe import TEACHER
from d2llm.student import D2LLM


def test_a_teacher_learns_from_its_students_mistakes(base_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    verbs, nouns = ("open", "close", "read", "write"), ("file", "socket", "pipe", "lock", "queue", "date")
    library = [Example(f"how to {v} the {n}", f"def {v}_{n}(): ...") for v in verbs for n in nouns]
    others = [Example(f"{n} to be cut {i} times", f"def cut_{n}_{i}(): ...") for n in nouns for i in range(9)]
    # A query in other words of the library's, and what is kept for validation, make no group.
    examples = [*library[4:], Example("another way", library[5].positive), *others]
    monkeypatch.setattr(teacher, "standard_library_pairs", lambda: library)
    student = D2LLM.create(base_model, lora_r=2, iem_hidden=8)
    own, foreign = teacher.halves(examples)

    assert own == library[4:] and len(foreign) == len(own) and set(foreign) <= set(others)
    assert teacher.halves(examples) == (own, foreign)
    for half in (own, foreign):
        found = teacher.mistakes(student, half)
        assert [(group.query, group.positive) for group in found] == [(each.query, each.positive) for each in half]
        corpus = [each.positive for each in half]
        queries = student.encode([each.query for each in half], "query", convert_to="torch")
        cosines = queries @ student.encode(corpus, "passage", convert_to="torch").T
        for group, row in zip(found, cosines, strict=True):
            assert len(set(group.passages)) == 1 + TEACHER.near + TEACHER.easy + TEACHER.hard
            assert set(group.negatives) <= set(corpus)
            best = [corpus[i] for i in row.argsort(descending=True) if corpus[i] != group.positive][: TEACHER.pool]
            assert set(group.negatives[: TEACHER.near]) <= set(best)
