"""The GPU report as a whole, in the interpreter: only the sizes and the timer differ from a run on a GPU.

The build is rehearsed with a toolkit that compiles nothing, the sanitizers with a tool that only runs what it is given.
"""

import json
import os
import sys

import pytest
import torch

from benchmarks.gpu_report import __main__ as program
from benchmarks.gpu_report.plan import Plan
from benchmarks.gpu_report.tiles import LAGS
from d2llm_kernels.backends.cuda import library
from d2llm_kernels.backends.triton import interpreted
from d2llm_kernels.measure import ceilings
from d2llm_kernels.measure.case import COMPILED, FOLDED, LITERAL
from d2llm_kernels.measure.problems import Interaction, Pool
from d2llm_kernels.measure.timing import Timer
from tests.fake_toolkit import Toolkit

# The report itself runs this folder on a GPU, and must not run itself.
pytestmark = pytest.mark.skipif(not interpreted(), reason="a smoke run needs the interpreter")


@pytest.fixture(autouse=True)
def library_as_it_was(monkeypatch):
    """What a rehearsed build leaves in the environment goes again."""
    monkeypatch.setenv(library.LIBRARY, "")
    yield
    library.missing.cache_clear()


@pytest.fixture(autouse=True)
def little_work(monkeypatch):
    """What bounds the machine is measured on little: bfloat16 takes seconds where the CPU has no products of it."""
    monkeypatch.setattr(ceilings, "_CPU_ROWS", 64)


@pytest.fixture
def toolkit(tmp_path, monkeypatch):
    """Makes torch and PATH look as where CUDA kernels can be built, with a tool to sanitize them."""

    def make(broken):
        made = Toolkit(tmp_path / "cuda", broken)
        sanitizer = tmp_path / "cuda/wrappers/bin/compute-sanitizer"
        sanitizer.write_text('#!/bin/sh\nshift 4\nexec "$@"\n')
        sanitizer.chmod(0o755)
        for name, value in made.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        return made

    return make


def run(folder, *arguments):
    status = program.main(["--smoke", "--out", str(folder), *arguments])
    return status, json.loads((folder / "report.json").read_text())


def outcomes(report):
    return {note["outcome"] for note in report["steps"].values()}


@pytest.mark.rest
def test_three_calls_make_a_whole_report(tmp_path, capsys, toolkit):
    made, folder = toolkit(broken=False), tmp_path / "out"
    status, report = run(folder, "--stage", "1")
    assert status == 0 and report["build"] == "built" and made.log.exists()
    # What that toolkit makes is no library, and the report goes on without.
    assert "_cuda" in report["machine"]["backends"]["cuda"]
    assert report["tests"]["outcome"] == "passed" and "PASSED" in (folder / "parity.txt").read_text()
    assert report["l2"] > 0 and set(report["ceilings"]["products"]) == {"bfloat16", "float32", "int8"}
    assert len(report["launches"]) == 8 and all(launch["right"] for launch in report["launches"].values())
    assert not report["rows"] and not report["sanitizers"]

    status, report = run(folder, "--stage", "2")
    assert status == 0 and report["tests"]["outcome"] == "passed"
    assert {row["operation"].split()[0] for row in report["rows"]} == {
        "attn_pool", "PMA", "iem_scores", "iem_pairs", "iem_topk", "in_batch_terms", "lora_linear"
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

    rows = report["rows"]
    capsys.readouterr()
    status, report = run(folder, "--stage", "3")
    assert status == 0 and report["rows"] == rows and outcomes(report) == {"done"}
    for tool in ("memcheck", "racecheck"):
        assert report["sanitizers"][tool] == {"outcome": "passed", "summary": "3 launched, 0 wrong", "failures": []}
        assert (folder / f"{tool}.txt").read_text().count("right") == 3
    (lags,) = report["lags"].values()
    assert list(lags) == [str(lag) for lag in LAGS] and all(seconds > 0 for seconds in lags.values())
    assert len(report["tiles"]) == 2 and all(found["best_s"] > 0 for found in report["tiles"].values())
    table = json.loads((folder / "table.json").read_text())
    assert sum(row["source"].startswith("timed on the interpreter") for row in table) == 2

    text = (folder / "report.md").read_text()
    assert all(row["shape"] in text for row in rows) and "encode:" in text and "Lags:" in text and "memcheck" in text
    assert "L2 cache to multiprocessors" in text and "Could not run" not in text
    printed = capsys.readouterr().out
    assert "iem_topk" in printed and f"written to {folder}" in printed and "tiles of scores F=64" in printed
    names = {"build.txt", "memcheck.txt", "parity.txt", "racecheck.txt", "report.json", "report.md"}
    assert {path.name for path in folder.iterdir()} == {*names, "table.json", "tried.jsonl", "work"}


def test_without_cuda_kernels_the_report_goes_on_and_says_so(tmp_path, toolkit, capsys):
    toolkit(broken=True)
    for call in (1, 2, 3):
        _, report = run(tmp_path / "out", "--only", "iem_topk")
        build = report["steps"]["build"]
        # A second try may find more; a third one is of no use.
        assert build["outcome"] == "failed" and build["tries"] == min(call, 2) and "out of luck" in build["why"]
        assert report["rows"][0]["variants"]["triton"]["median_s"] > 0
    assert "CUDA kernels: failed" in (tmp_path / "out/report.md").read_text()
    assert "could not run: build" in capsys.readouterr().out


def test_what_there_is_no_time_for_is_listed_and_a_later_call_does_it(tmp_path, monkeypatch):
    _, report = run(tmp_path, "--minutes", "0.01", "--only", "iem_topk")
    assert not report["rows"] and {n for n, s in report["steps"].items() if s["outcome"] == "dropped"} == {
        "ceilings", "iem_topk 2 x 60 F=16 k=5 float32"
    }  # fmt: skip
    _, report = run(tmp_path, "--only", "iem_topk")
    assert len(report["rows"]) == 1 and outcomes(report) == {"done"}
    # And does nothing twice, but for other sources.
    monkeypatch.setattr(Plan, "_row", lambda self, case: pytest.fail("measured again"))
    assert run(tmp_path, "--only", "iem_topk")[1]["rows"] == report["rows"]
    monkeypatch.setattr("benchmarks.gpu_report.state.sources", lambda: "others")
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        run(tmp_path, "--only", "iem_topk")


def test_a_kill_leaves_what_was_found_and_what_was_in_hand_comes_last(tmp_path, monkeypatch):
    measured = Plan._row

    def killed(self, case):
        if self.values["rows"]:
            raise KeyboardInterrupt
        measured(self, case)

    monkeypatch.setattr(Plan, "_row", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "--only", "attn_pool backward")
    report = json.loads((tmp_path / "report.json").read_text())
    (first,) = report["rows"]
    (name,) = (name for name, note in report["steps"].items() if note["outcome"] == "in hand")
    monkeypatch.setattr(Plan, "_row", measured)
    _, report = run(tmp_path, "--only", "attn_pool backward")
    assert report["rows"][0] == first and len(report["rows"]) == 3 and outcomes(report) == {"done"}
    assert report["rows"][-1]["shape"] in name


def test_a_lost_gpu_starts_the_program_again_with_the_time_that_is_left(tmp_path, monkeypatch):
    def lost(self):
        raise RuntimeError("an illegal memory access was encountered\nand more")

    def started(path, command):
        raise SystemExit(str(command))

    monkeypatch.setattr(Plan, "_row", lambda self, case: monkeypatch.setattr(Timer, "free", lost))
    monkeypatch.setattr(os, "execv", started)
    with pytest.raises(SystemExit) as ended:
        run(tmp_path, "--only", "iem_topk", "--minutes", "5")
    command = ended.value.code
    assert sys.executable in command and "'--smoke'" in command and "'--only', 'iem_topk'" in command
    assert 4 < float(command.partition("'--minutes', '")[2].partition("'")[0]) < 5
    note = json.loads((tmp_path / "report.json").read_text())["steps"]["iem_topk 2 x 60 F=16 k=5 float32"]
    assert note["outcome"] == "failed" and note["tries"] == 1 and "illegal memory access" in note["why"]


@pytest.mark.parametrize("spoil", (lambda t: t * 1.01, lambda t: t * float("nan")))
def test_a_wrong_kernel_is_shown_as_failing_and_not_timed(tmp_path, monkeypatch, spoil):
    for problem in (Pool, Interaction):
        right = problem.forward
        monkeypatch.setattr(
            problem, "forward", lambda self, backend, right=right: tuple(map(spoil, right(self, backend)))
        )
    status, report = run(tmp_path, "--only", "iem_scores forward 3")
    found = report["rows"][0]["variants"]["triton"]
    assert status == 1 and "median_s" not in found and found["failure"].startswith("wrong: ")
    assert "FAILING" in (tmp_path / "report.md").read_text()
