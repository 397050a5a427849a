"""Scores of pairs equal the matrix systems' on the same texts."""

from collections.abc import Sequence

import numpy as np
import pytest

from d2llm.bm25 import BM25
from d2llm.errors import InputError
from d2llm.evaluation.pair_systems import bm25_pairs, mean_pool_pairs, pairs_side_by_side, student_pairs
from d2llm.evaluation.systems import mean_pool_cosine, student_scores
from d2llm.student import D2LLM

PAIRS = [
    ("open the file", "read it"),
    ("close x", "close x y"),
    ("open the file", "open a file"),
    ("close x", "read it"),
]
FIRST, SECOND = ["open the file", "close x"], ["read it", "close x y", "open a file"]
ROWS, COLUMNS = [0, 1, 0, 1], [0, 1, 2, 0]


class SaysTheLength:
    def judge(
        self, queries: Sequence[str], passages: Sequence[str], task: str, *, show_progress: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        return np.array([[len(passage), 1.0] for passage in passages], np.float32), np.zeros((len(passages), 1))


@pytest.fixture(scope="module")
def student(base_model: str) -> D2LLM:
    return D2LLM.create(base_model, iem_hidden=16)


def test_bm25() -> None:
    np.testing.assert_array_equal(bm25_pairs(PAIRS), BM25(SECOND).scores(FIRST)[ROWS, COLUMNS])


def test_mean_pooling(base_model: str) -> None:
    expected = mean_pool_cosine(base_model, 2, FIRST, SECOND)[ROWS, COLUMNS]
    np.testing.assert_allclose(mean_pool_pairs(base_model, 2, PAIRS), expected, atol=1e-5)


def test_student(student: D2LLM) -> None:
    for found, expected in zip(
        student_pairs(student, PAIRS), student_scores(student, FIRST, SECOND, "sym"), strict=True
    ):
        np.testing.assert_allclose(found, expected[ROWS, COLUMNS], atol=1e-5)


def test_side_by_side_measures_the_teacher_too(student: D2LLM) -> None:
    def highest(scores: np.ndarray) -> dict[str, float]:
        return {"best": float(scores.argmax())}

    table = pairs_side_by_side(PAIRS, highest, student, SaysTheLength()).to_dict()  # type: ignore[arg-type]
    assert list(table)[-1] == "teacher" and table["teacher"]["best"] == 2


def test_no_pairs_are_refused() -> None:
    with pytest.raises(InputError, match="pairs: expected at least one"):
        pairs_side_by_side([], lambda scores: {})
