"""What the GPU report runs before it times anything: the sanitizers' verdict is the report's."""

import pytest

from benchmarks.gpu_report import parity


def test_without_the_tool_the_sanitizer_is_skipped(monkeypatch):
    monkeypatch.setattr(parity.shutil, "which", lambda name, path: None)
    assert parity.sanitize("memcheck", 1)["outcome"] == "skipped"


@pytest.mark.parametrize("status,outcome", [(0, "passed"), (9, "failed")])
def test_the_tests_run_under_the_tool(monkeypatch, tmp_path, status, outcome):
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f'#!/bin/sh\necho "$@"\nexit {status}\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found = parity.sanitize("racecheck", 60)
    assert found["outcome"] == outcome
    assert "--tool racecheck --error-exitcode 9" in found["summary"] and "-m pytest" in found["summary"]
