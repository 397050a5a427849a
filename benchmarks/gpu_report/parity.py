"""The tests, and the kernels under compute-sanitizer, each in a process of its own."""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu_report import children
from d2llm_kernels.measure.machine import installed

CUT_OFF = "cut off"
SANITIZERS = ("memcheck", "racecheck")
# Where toolkits put their tools when PATH does not say.
_TOOLKIT = ("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer")
# Most of a test's time goes into compiling kernels, on one core a process.
_PROCESSES = 12


def tests(paths: list[str], seconds: float, on_gpu: bool, log: Path) -> dict[str, Any]:
    """Run pytest on ``paths`` and say how it went: passed, failed, cut off or skipped."""
    absent = [name for name in ("pytest", "tokenizers", "transformers") if installed(name) is None]
    if absent:
        return {"outcome": "skipped", "summary": f"not installed: {', '.join(absent)}", "failures": []}
    command = [sys.executable, "-m", "pytest", "-v", "-rfE", "--tb=short", "-p", "no:cacheprovider"]
    # What a CPU takes minutes for is done here, too.
    command += ["-m", "not full", *paths]
    if on_gpu and installed("pytest-xdist"):
        command += ["-n", str(min(_PROCESSES, os.cpu_count() or 1))]
    return _verdict(children.run(command, seconds, log), seconds, log)


def sanitize(tool: str, seconds: float, log: Path) -> dict[str, Any]:
    """A few launches of the CUDA kernels under a tool of compute-sanitizer, such as "memcheck"."""
    found = shutil.which("compute-sanitizer", path=os.pathsep.join((os.environ["PATH"], *_TOOLKIT)))
    if found is None:
        return {"outcome": "skipped", "summary": "no compute-sanitizer", "failures": []}
    command = [found, "--tool", tool, "--error-exitcode", "9"]
    command += [sys.executable, "-m", "benchmarks.gpu_report.launches", "--few"]
    return _verdict(children.run(command, seconds, log), seconds, log)


def _verdict(status: int | None, seconds: float, log: Path) -> dict[str, Any]:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    last = lines[-1].strip("= ") if lines else f"exit status {status}"
    return {
        "outcome": CUT_OFF if status is None else "failed" if status else "passed",
        "summary": f"after {seconds:.0f} s, in {last[:200]}" if status is None else last,
        "failures": [line for line in lines if line.startswith(("FAILED", "ERROR"))],
    }
