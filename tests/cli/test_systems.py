"""Every system of the side-by-side table against a computation of its own."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from d2llm.backbone import load_encoder, load_tokenizer
from d2llm.data.example import Example
from d2llm.data.validation import Validation
from d2llm.errors import InputError
from d2llm.evaluation.systems import mean_pool_cosine, side_by_side, student_mrr, student_scores, teacher_reranking
from d2llm.student import D2LLM

QUERIES = ["open the file", "close the socket of x"]
PASSAGES = ["open a file of x y", "read it", "close the socket of z and then that of x y"]


class LongestFirst:
    """A teacher that says yes to long passages and records what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def judge(
        self, queries: Sequence[str], passages: Sequence[str], task: str, *, show_progress: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        self.asked += zip(queries, passages, strict=True)
        return np.array([[len(passage), 1.0] for passage in passages], np.float32), np.zeros((len(passages), 1))


@pytest.fixture(scope="module")
def student(base_model: str) -> D2LLM:
    return D2LLM.create(base_model, iem_hidden=16)


@torch.inference_mode()
def test_mean_pooling_in_batches_equals_text_by_text(base_model: str) -> None:
    model, tokenizer = load_encoder(base_model, num_layers=2), load_tokenizer(base_model)

    def embed(text: str) -> torch.Tensor:
        return model(**tokenizer([text], return_tensors="pt")).last_hidden_state[0].mean(0)

    expected = [[torch.cosine_similarity(embed(q), embed(p), dim=0).item() for p in PASSAGES] for q in QUERIES]
    np.testing.assert_allclose(mean_pool_cosine(base_model, 2, QUERIES, PASSAGES), expected, atol=1e-5)


def test_student_scores_equal_pairwise_scores(student: D2LLM) -> None:
    cosine, logits = student_scores(student, QUERIES, PASSAGES, "sym")
    pairs = [(q, p) for q in QUERIES for p in PASSAGES]
    expected = student.score([q for q, _ in pairs], [p for _, p in pairs], "sym").reshape(2, 3)
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    q, p = student.encode(QUERIES, kind="query", normalize=True), student.encode(PASSAGES, normalize=True)
    np.testing.assert_allclose(cosine, q @ p.T, atol=1e-6)


def test_student_mrr(student: D2LLM) -> None:
    texts = ["open the file", "close the socket of x y", "z", "read a b c"]
    found = student_mrr(student, Validation.from_examples([Example(text, text) for text in texts]))
    # A warm student ranks by distance, and no text is nearer to a text than itself.
    assert found == {"mrr": 1.0, "mrr_cosine": 1.0}


def test_teacher_judges_only_candidates_and_orders_them() -> None:
    teacher = LongestFirst()
    first = np.array([[3.0, 2.0, 1.0], [1.0, 3.0, 2.0]])
    scores = teacher_reranking(teacher, first, QUERIES, PASSAGES, candidates=2)  # type: ignore[arg-type]
    assert set(teacher.asked) == {(QUERIES[i], PASSAGES[j]) for i, j in ((0, 0), (0, 1), (1, 1), (1, 2))}
    assert np.argsort(-scores, axis=1).tolist() == [[0, 1, 2], [2, 1, 0]]


@pytest.mark.parametrize("candidates, shape", [(0, (2, 3)), (1, (3, 2))])
def test_bad_reranking_is_refused(candidates: int, shape: tuple[int, int]) -> None:
    with pytest.raises(InputError):
        teacher_reranking(LongestFirst(), np.zeros(shape), QUERIES, PASSAGES, candidates=candidates)  # type: ignore[arg-type]


def test_side_by_side_has_every_system_and_grades(student: D2LLM) -> None:
    examples = [Example(QUERIES[0], PASSAGES[0], (PASSAGES[1],)), Example(QUERIES[1], PASSAGES[2])]
    data = Validation.from_examples(examples)
    table = side_by_side(data, student, LongestFirst(), candidates=3, first_stage="BM25").to_dict()  # type: ignore[arg-type]
    assert list(table) == [
        "BM25",
        "untrained LLM, mean-pool cosine",
        "student cosine",
        "student IEM",
        "teacher on BM25's best 3",
    ]
    assert table["BM25"]["mrr"] == 1.0
    # Longest first: the first query's positive is second, the second query's first.
    assert table["teacher on BM25's best 3"]["mrr"] == pytest.approx(0.75)
    assert all(row["queries"] == 2 and row["seconds"] >= 0 for row in table.values())


def test_without_student_there_is_bm25_and_the_teacher_on_it() -> None:
    data = Validation.from_examples([Example(QUERIES[0], PASSAGES[0], (PASSAGES[1],))])
    assert list(side_by_side(data, teacher=LongestFirst()).to_dict()) == ["BM25", "teacher on BM25's best 2"]  # type: ignore[arg-type]


def test_unknown_first_stage_is_refused(student: D2LLM) -> None:
    data = Validation.from_examples([Example(QUERIES[0], PASSAGES[0], (PASSAGES[1],))])
    with pytest.raises(InputError, match="first_stage: expected one of"):
        side_by_side(data, student, LongestFirst(), first_stage="magic")  # type: ignore[arg-type]
