import json

import numpy as np
import pytest

from d2llm.errors import InputError
from d2llm.evaluation import Comparison, Row, compare, ir_metrics

TABLE = Comparison(
    (
        Row("BM25", {"mrr": 0.4921, "recall@1": 0.39, "queries": 500.0}, 0.31),
        Row("student | IEM", {"mrr": 0.5731, "recall@1": 0.39, "queries": 500.0}),
    )
)


def test_text_is_aligned_and_marks_the_best():
    assert str(TABLE).splitlines() == [
        "system           mrr   recall@1   queries   seconds",
        "-------------  ------  ---------  --------  --------",
        "BM25           0.492      0.390*      500       0.3",
        "student | IEM  0.573*     0.390*      500         -",
    ]


def test_markdown():
    assert TABLE.to_markdown(["mrr", "recall@1"]).splitlines() == [
        "| system | mrr | recall@1 |",
        "| --- | ---: | ---: |",
        "| BM25 | 0.492 | **0.390** |",
        r"| student \| IEM | **0.573** | **0.390** |",
    ]


def test_json_keeps_full_precision(tmp_path):
    TABLE.save(tmp_path / "table.json")
    assert json.loads((tmp_path / "table.json").read_text()) == {
        "BM25": {"mrr": 0.4921, "recall@1": 0.39, "queries": 500.0, "seconds": 0.31},
        "student | IEM": {"mrr": 0.5731, "recall@1": 0.39, "queries": 500.0},
    }


def test_compare_measures_matrices_and_functions():
    good, bad = np.eye(4), -np.eye(4)
    table = compare({"good": good, "bad": lambda: bad}, ir_metrics)
    assert [row.name for row in table.rows] == ["good", "bad"]
    assert table.to_dict()["good"]["mrr"] == 1
    assert table.to_dict()["bad"]["mrr"] == 0.25
    assert table.rows[0].seconds is None
    assert table.rows[1].seconds >= 0
    assert table.best("mrr") == 1
    assert table.best("seconds") is None


def test_errors_name_the_system_and_the_column():
    with pytest.raises(InputError, match="^systems: expected"):
        compare({}, ir_metrics)
    with pytest.raises(InputError, match="^broken: scores: expected"):
        compare({"broken": [[np.nan]]}, ir_metrics)
    with pytest.raises(InputError, match="^columns: expected"):
        TABLE.to_text(["speed"])
