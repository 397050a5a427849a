import json

import numpy as np
import pytest

from d2llm.errors import InputError
from d2llm.evaluation import Comparison, Contrast, Difference, Row, compare, ir_metrics

TABLE = Comparison(
    (
        Row("BM25", {"mrr": 0.4921, "search_ms": 0.31, "recall@1": 0.39, "queries": 500.0}),
        Row("student | IEM", {"mrr": 0.5731, "recall@1": 0.39, "queries": 500.0}, {"mrr": 0.0049}),
    ),
    (Contrast("student | IEM", "BM25", "mrr", Difference(0.081, 0.052, 0.1101, 0.00019)),),
    ("BM25: fewer than 1000 passages for 3 of 500 queries, 0 at the least",),
)


def test_text_is_aligned_marks_the_best_and_tells_differences():
    assert str(TABLE).splitlines() == [
        "system                  mrr   recall@1   queries   search_ms",
        "-------------  -------------  ---------  --------  ----------",
        "BM25                  0.492      0.390*      500         0.3",
        "student | IEM  0.573 ±0.005*     0.390*      500           -",
        "",
        "difference            metric   value     95 % interval       p",
        "--------------------  ------  ------  ----------------  ------",
        "student | IEM − BM25     mrr  +0.081  +0.052 to +0.110  0.0002",
        "",
        "BM25: fewer than 1000 passages for 3 of 500 queries, 0 at the least",
    ]


def test_markdown():
    assert TABLE.to_markdown(["mrr", "recall@1"]).splitlines() == [
        "| system | mrr | recall@1 |",
        "| --- | ---: | ---: |",
        "| BM25 | 0.492 | **0.390** |",
        r"| student \| IEM | **0.573 ±0.005** | **0.390** |",
        "",
        "| difference | metric | value | 95 % interval | p |",
        "| --- | ---: | ---: | ---: | ---: |",
        r"| student \| IEM − BM25 | mrr | +0.081 | +0.052 to +0.110 | 0.0002 |",
        "",
        "- BM25: fewer than 1000 passages for 3 of 500 queries, 0 at the least",
    ]


def test_json_keeps_full_precision(tmp_path):
    TABLE.save(tmp_path / "table.json")
    kept = json.loads((tmp_path / "table.json").read_text())
    assert kept["systems"]["BM25"] == {"mrr": 0.4921, "search_ms": 0.31, "recall@1": 0.39, "queries": 500.0}
    assert kept["spread"] == {"student | IEM": {"mrr": 0.0049}}
    assert kept["differences"][0]["high"] == 0.1101 and kept["notes"] == list(TABLE.notes)


def test_compare_measures_matrices():
    table = compare({"good": np.eye(4), "bad": -np.eye(4)}, ir_metrics)
    assert [(row.name, row.metrics["mrr"]) for row in table.rows] == [("good", 1.0), ("bad", 0.25)]
    assert table.best("mrr") == 1
    assert TABLE.best("search_ms") is None


def test_errors_name_the_system_and_the_column():
    with pytest.raises(InputError, match="^systems: expected"):
        compare({}, ir_metrics)
    with pytest.raises(InputError, match="^broken: scores: expected"):
        compare({"broken": [[np.nan]]}, ir_metrics)
    with pytest.raises(InputError, match="^columns: expected"):
        TABLE.to_text(["speed"])
