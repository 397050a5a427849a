"""The GPU report as a whole, in the interpreter: only the sizes and the timer differ from a run on a GPU."""

import json

import pytest

from benchmarks.gpu_report import __main__ as program
from d2llm.bench.case import COMPILED, FOLDED, LITERAL
from d2llm.bench.problems import Interaction, Pool
from d2llm_kernels.backends import interpreted

# The report itself runs this folder on a GPU, and must not run itself.
pytestmark = pytest.mark.skipif(not interpreted(), reason="a smoke run needs the interpreter")


def test_the_whole_report(tmp_path, capsys):
    assert program.main(["--smoke", "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["tests"]["outcome"] == "passed" and not report["dropped"]
    assert set(report["ceilings"]["products"]) == {"bfloat16", "float32", "int8"}
    assert {row["operation"].split()[0] for row in report["rows"]} == {
        "attn_pool", "PMA", "iem_scores", "iem_pairs", "iem_topk", "in_batch_terms"
    }  # fmt: skip
    for row in report["rows"]:
        assert row["flops"] > 0 and row["bytes"] > 0 and row["floor_s"] > 0 and row["literal_bytes"] > 0
        assert {"triton", FOLDED, LITERAL} <= set(row["variants"])
        for found in row["variants"].values():
            assert found["median_s"] > 0 and "failure" not in found
        assert {FOLDED, LITERAL} <= set(row["variants"]["triton"]["ratios"])
    assert sum(COMPILED in row["variants"] for row in report["rows"]) == 3
    for row in report["end_to_end"]:
        assert all(found["tokens_per_s"] > 0 for found in row["variants"].values())
    text = (tmp_path / "report.md").read_text()
    assert all(row["shape"] in text for row in report["rows"]) and "encode:" in text
    printed = capsys.readouterr().out
    assert "iem_topk" in printed and f"written to {tmp_path}" in printed


def test_what_there_is_no_time_for_is_listed_and_the_rest_is_written(tmp_path):
    program.main(["--smoke", "--out", str(tmp_path), "--minutes", "0.01", "--only", "iem_topk"])
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["ceilings"] and not report["rows"] and len(report["dropped"]) == 1


@pytest.mark.parametrize("spoil", (lambda t: t * 1.01, lambda t: t * float("nan")))
def test_a_wrong_kernel_is_shown_as_failing_and_not_timed(tmp_path, monkeypatch, spoil):
    for problem in (Pool, Interaction):
        right = problem.forward
        monkeypatch.setattr(
            problem, "forward", lambda self, backend, right=right: tuple(map(spoil, right(self, backend)))
        )
    status = program.main(["--smoke", "--out", str(tmp_path), "--only", "iem_scores forward 3"])
    found = json.loads((tmp_path / "report.json").read_text())["rows"][0]["variants"]["triton"]
    assert status == 1 and "median_s" not in found and found["failure"].startswith("wrong: ")
    assert "FAILING" in (tmp_path / "report.md").read_text()
