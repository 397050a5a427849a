"""d2llm bench at tiny shapes."""

import json
import subprocess
import sys
from functools import partial

import pytest

from d2llm_kernels.measure import ceilings
from tests.cli.conftest import Run

TINY = ("--batch", 3, "--length", 5, "--dim", 16, "--heads", 2, "--hidden", 16, "--passages", 40, "--k", 4, "--hard", 2)


@pytest.fixture(autouse=True)
def little_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """What bounds the machine is measured on little: bfloat16 takes seconds where the CPU has no products of it."""
    monkeypatch.setattr(ceilings, "_CPU_ROWS", 64)
    monkeypatch.setattr(ceilings, "measure", partial(ceilings.measure, copied_bytes=1 << 20))


def test_every_part_is_timed_and_kept(run: Run, tmp_path) -> None:
    result = run("bench", *TINY, "--seconds", 0.01, "--json", tmp_path / "bench.json")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "bench.json").read_text())
    operations = [row["operation"] for row in report["rows"]]
    assert operations == [
        "attn_pool forward",
        "attn_pool backward",
        "PMA module forward+backward",
        "iem_scores forward",
        "iem_scores backward",
        "iem_topk",
        "in_batch_terms forward+backward",
    ]
    assert report["machine"]["versions"]["torch"] and report["ceilings"]["copy"] > 0
    assert all(operation in result.output for operation in operations) and "% of limit" in result.output


def test_one_part_without_the_literal_form(run: Run) -> None:
    result = run("bench", "pool", *TINY, "--forward", "--no-literal", "--kind", "packed", "--seconds", 0.01)
    assert result.exit_code == 0 and "packed" in result.output
    assert "backward" not in result.output and "x reference" not in result.output.split("\ntime:")[0]


def test_triton_need_not_be_installed() -> None:
    program = """
import sys
sys.modules["triton"] = None
from functools import partial
from d2llm_kernels.measure import ceilings
ceilings._CPU_ROWS, ceilings.measure = 64, partial(ceilings.measure, copied_bytes=1 << 20)
from d2llm.cli import main
main()
"""
    arguments = [str(argument) for argument in ("bench", "pool", *TINY, "--forward", "--seconds", 0.01)]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)
    assert done.returncode == 0 and "attn_pool" in done.stdout, done.stderr


@pytest.mark.parametrize(
    "arguments,said",
    [
        (("speed",), "parts: expected some of pool, pma, score, topk, loss, got 'speed'"),
        (("--heads", 7), "heads: expected a divisor of dim (1024), got 7"),
        (("--passages", 5), "k: expected at most the number of passages, 5, got 100"),
        (("--batch", 0), "batch: expected at least 1, got 0"),
        (("--kind", "ragged"), "kind: expected one of whole, masked, packed, got 'ragged'"),
        (("--dtype", "float8"), "--dtype: expected one of"),
    ],
)
def test_bad_input_is_named(run: Run, arguments, said) -> None:
    result = run("bench", *arguments)
    assert result.exit_code == 2 and said in result.output
