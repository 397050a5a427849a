"""Scores of pairs equal those of the retrieval systems on the same texts."""

from collections.abc import Sequence

import numpy as np
import pytest

from d2llm.bm25 import BM25
from d2llm.errors import InputError
from d2llm.evaluation.embedders import MeanPool
from d2llm.evaluation.lineup import Lineup, default_systems, parse_systems
from d2llm.evaluation.measure_pairs import measure_pairs
from d2llm.evaluation.pair_systems import ScoredPairs, bm25_pairs, cosine_pairs, score_pairs, student_pairs
from d2llm.evaluation.systems import iem_scores, mean_pool_cosine
from d2llm.student import D2LLM
from d2llm.student.encoding import cosine_similarity

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
    np.testing.assert_allclose(cosine_pairs(MeanPool(base_model, 2), PAIRS), expected, atol=1e-5)


def test_student(student: D2LLM) -> None:
    queries, passages = (
        student.encode(side, kind, convert_to="torch") for side, kind in ((FIRST, "query"), (SECOND, "passage"))
    )
    expected = (cosine_similarity(queries, passages), iem_scores(student, queries, passages, "sym"))
    for found, whole in zip(student_pairs(student, PAIRS), expected, strict=True):
        np.testing.assert_allclose(found, whole[ROWS, COLUMNS], atol=1e-5)


def test_a_line_up_of_two_seeds_and_a_teacher(student: D2LLM) -> None:
    systems = default_systems(students=True, teacher=True, pairs=True)
    lineup = Lineup(systems, (("s", student), ("s", student)), SaysTheLength())  # type: ignore[arg-type]
    found = score_pairs(lineup, PAIRS)
    assert list(found) == ["BM25", "untrained LLM, mean-pool cosine", "s cosine", "s IEM", "teacher"]
    assert len(found["s IEM"].seeds) == 2 and found["teacher"].seeds[0].argmax() == 2
    table = measure_pairs(found, [0, 1, 1, 0], "nli", samples=100)
    assert table.rows[3].spread == {"ap": 0.0, "roc_auc": 0.0} and table.rows[4].metrics["ap"] == 1.0
    assert [each.metric for each in table.contrasts] == ["ap"] * 4


def test_differences_in_every_metric() -> None:
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 2, 120)
    found = {
        name: ScoredPairs(((labels + draw.normal(0, noise, 120)).astype(np.float32),), 1.0)
        for name, noise in (("bad", 9.0), ("good", 0.5))
    }
    for kind, metrics in (("nli", ("ap", "roc_auc", "accuracy", "f1")), ("sts", ("spearman", "pearson"))):
        for metric in metrics:
            validation = (found, labels.tolist()) if kind == "nli" else None
            table = measure_pairs(found, labels.tolist(), kind, validation, contrast=metric, samples=100)
            (contrast,) = table.contrasts
            rows = [row.metrics[metric] for row in table.rows]
            assert contrast.found.value == pytest.approx(rows[1] - rows[0], abs=1e-6)
            assert contrast.found.low > 0 and contrast.found.p < 0.05
    with pytest.raises(InputError, match="--contrast: expected one of ap, roc_auc, got 'f1'"):
        measure_pairs(found, labels.tolist(), "nli", contrast="f1")


def test_what_is_no_system_of_pairs_is_refused(student: D2LLM) -> None:
    lineup = Lineup(parse_systems(["hybrid,iem"]), (("s", student),))
    with pytest.raises(InputError, match="--systems: hybrid fuses scores over the passages"):
        score_pairs(lineup, PAIRS)
    with pytest.raises(InputError, match="pairs: expected at least one"):
        score_pairs(lineup, [])
