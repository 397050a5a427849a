"""What the GPU report runs in processes of their own: the verdict of tests and sanitizers is the report's."""

import pytest
import torch

from benchmarks.gpu_report import experimental, launches, parity


def test_without_the_tool_the_sanitizer_is_skipped(monkeypatch, tmp_path):
    monkeypatch.setattr(parity.shutil, "which", lambda name, path: None)
    assert parity.sanitize("memcheck", 1, tmp_path / "log")["outcome"] == "skipped"


@pytest.mark.parametrize("status,outcome", [(0, "passed"), (9, "failed")])
def test_a_few_launches_run_under_the_tool(monkeypatch, tmp_path, status, outcome):
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f'#!/bin/sh\necho "$@"\nexit {status}\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found = parity.sanitize("racecheck", 60, tmp_path / "log")
    assert found["outcome"] == outcome
    assert "--tool racecheck --error-exitcode 9" in found["summary"]
    assert found["summary"].endswith("-m benchmarks.gpu_report.launches --few")


@pytest.mark.parametrize("capability,hopper", [((9, 0), 3), ((8, 0), 0)])
def test_the_kernels_for_hopper_gpus_are_among_the_few(monkeypatch, capability, hopper):
    """A dry run of what a GPU would be given: names alone, nothing is launched."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(experimental.backends, "missing", lambda name: None)
    monkeypatch.setattr(launches, "unsupported", lambda name, operation, device, dtype: None)
    names = [launch.name for launch in launches.few(torch.device("cuda"))]
    own = [name for name in names if name.startswith(experimental.HOPPER)]
    assert len(own) == hopper and all(name.startswith("cuda") for name in names) and len(names) == 3 + hopper
    if hopper:
        assert [name.rpartition(" ")[2] for name in own] == ["attn_pool", "iem_scores", "fp8"]


def test_a_run_that_is_cut_off_says_where(tmp_path, monkeypatch):
    monkeypatch.setattr(parity, "installed", lambda name: None if name == "pytest-xdist" else "1")
    found = parity.tests(["--version"], 60, False, tmp_path / "log")
    assert found["outcome"] == "passed"
    monkeypatch.setattr(parity.children, "run", lambda command, seconds, log: log.write_text("tests/x.py::y ") and None)
    found = parity.tests([], 5, False, tmp_path / "log")
    assert found["outcome"] == parity.CUT_OFF and found["summary"] == "after 5 s, in tests/x.py::y"
