import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2llm.errors import InputError
from d2llm.evaluation import ir_metrics, reranked_scores


def matrix(queries: int, passages: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(queries, passages)).astype(np.float32)


def test_mrr_over_500_candidates_is_the_direct_formula():
    scores = matrix(500, 500) + 2.5 * np.eye(500, dtype=np.float32)
    ranks = 1 + (scores > np.diag(scores)[:, None]).sum(axis=1)
    metrics = ir_metrics(scores)
    assert metrics["mrr"] == pytest.approx((1 / ranks).mean(), abs=1e-12)
    assert metrics["mrr@10"] == pytest.approx(np.where(ranks <= 10, 1 / ranks, 0).mean(), abs=1e-12)
    assert metrics["map"] == pytest.approx(metrics["mrr"], abs=1e-12)
    for k in (1, 5, 10, 100):
        assert metrics[f"recall@{k}"] == pytest.approx((ranks <= k).mean(), abs=1e-12)
    assert metrics["ndcg@10"] == pytest.approx(np.where(ranks <= 10, 1 / np.log2(1 + ranks), 0).mean(), abs=1e-9)
    assert metrics["queries"] == 500


def test_several_relevant_passages():
    # Ranking: 3, 1, 0, 2; relevant are 1 and 2, at ranks 2 and 4.
    metrics = ir_metrics([[2.0, 3.0, 1.0, 4.0]], [[0, 1, 1, 0]], recall_at=(1, 2, 4))
    assert metrics["map"] == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert metrics["mrr"] == pytest.approx(1 / 2)
    assert (metrics["recall@1"], metrics["recall@2"], metrics["recall@4"]) == (0, 0.5, 1)


def test_ties_count_against_the_system_whatever_the_order_of_the_data():
    assert ir_metrics(np.zeros((3, 3)))["mrr"] == pytest.approx(1 / 3)
    for names in ("abc", "cba"):
        run = {"q": dict.fromkeys(names, 1.0)}
        assert ir_metrics(run, {"q": {names[0]: 1}})["mrr"] == pytest.approx(1 / 3)


def test_scores_that_differ_below_float32_are_told_apart():
    scores = np.array([[1.0 + 1e-12, 1.0], [0.0, 1.0]])
    assert ir_metrics(scores)["mrr"] == 1


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 8), st.integers(0, 10_000))
def test_matrix_and_run_agree_and_passage_order_does_not_matter(queries, passages, seed):
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, 4, (queries, passages)).astype(float)
    grades = generator.integers(0, 3, (queries, passages))
    grades[0, 0] = 1
    expected = ir_metrics(scores, grades)
    order = generator.permutation(passages)
    assert ir_metrics(scores[:, order], grades[:, order]) == pytest.approx(expected)
    run = {f"q{i}": {f"d{j}": scores[i, j] for j in range(passages)} for i in range(queries)}
    qrels = {f"q{i}": {f"d{j}": int(grades[i, j]) for j in range(passages)} for i in range(queries)}
    assert ir_metrics(run, qrels) == pytest.approx(expected)
    by_number = {i: {j: int(grades[i, j]) for j in range(passages)} for i in range(queries)}
    assert ir_metrics(scores, by_number) == pytest.approx(expected)
    assert all(0 <= value <= 1 for name, value in expected.items() if name != "queries")


def test_minus_infinity_means_not_retrieved():
    scores = np.full((2, 3), -np.inf)
    scores[0, 0] = 1
    metrics = ir_metrics(scores, [[1, 0, 0], [0, 1, 0]])
    assert metrics["mrr"] == 0.5
    assert metrics["recall@100"] == 0.5


def test_queries_without_relevant_passage_are_left_out_and_missing_queries_count_zero():
    metrics = ir_metrics({"a": {"x": 1.0}, "b": {"x": 1.0}}, {"a": {"x": 1}, "b": {"x": 0}, "c": {"x": 1}})
    assert metrics["queries"] == 2
    assert metrics["mrr"] == 0.5


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("scores", ([[np.nan, 1.0], [0.0, 1.0]],)),
        ("scores", ([[np.inf, 1.0], [0.0, 1.0]],)),
        ("scores", (np.zeros((0, 3)),)),
        ("scores", ([1.0, 2.0],)),
        ("qrels", (np.zeros((2, 3)),)),
        ("qrels", (np.zeros((2, 3)), np.zeros((3, 2)))),
        ("qrels", (np.zeros((2, 3)), np.zeros((2, 3)))),
        ("qrels", (np.zeros((2, 3)), {5: {0: 1}})),
        ("qrels", ({"q": {"d": 1.0}}, None)),
        ("recall_at", (np.zeros((2, 2)), None, (0,))),
    ],
)
def test_errors_name_the_argument(name, arguments):
    with pytest.raises(InputError, match=f"^{name}: "):
        ir_metrics(*arguments)


def test_reranking_puts_candidates_first_and_keeps_the_rest():
    first = np.array([[0.9, 0.8, 0.7, 0.6, 0.5]])
    result = reranked_scores(first, [[0, 2]], [[-1.0, 3.0]])
    assert np.argsort(-result[0], kind="stable").tolist() == [2, 0, 1, 3, 4]
    tied = reranked_scores(first, [[0, 2]], [[1.0, 1.0]])
    assert tied[0, 0] == tied[0, 2] > tied[0, 1]


@pytest.mark.parametrize(
    ("name", "candidates", "scores"),
    [
        ("candidates", [[0], [1], [2]], [[1.0], [1.0], [1.0]]),
        ("candidates", [[5], [1]], [[1.0], [1.0]]),
        ("candidates", [[1, 1], [0, 1]], [[1.0, 2.0], [1.0, 2.0]]),
        ("scores", [[0], [1]], [[1.0, 2.0], [1.0, 2.0]]),
        ("scores", [[0], [1]], [[1.0], [np.nan]]),
    ],
)
def test_reranking_errors_name_the_argument(name, candidates, scores):
    with pytest.raises(InputError, match=f"^{name}: expected"):
        reranked_scores(np.zeros((2, 3)), candidates, scores)
