"""What runs before anything is timed: the build, and the parity tests in a process of their own."""

import subprocess
import sys
from pathlib import Path
from typing import Any

from d2llm.bench.machine import installed
from d2llm_kernels import backends

ROOT = Path(__file__).parents[2]


def build() -> list[str]:
    """Build what is compiled ahead of time; return a line for each thing that could not be.

    Nothing is, yet. A compiled backend builds its extension here, in place, before anything looks for it.
    """
    return [f"backend {name}: {reason}" for name in ("cpu", "cuda") if (reason := backends.missing(name))]


def tests(paths: list[str], seconds: float, on_gpu: bool) -> dict[str, Any]:
    """Run pytest on ``paths`` in a process of its own and say how it went: passed, failed, cut off or skipped."""
    absent = [name for name in ("pytest", "tokenizers", "transformers") if installed(name) is None]
    if absent:
        return {"outcome": "skipped", "summary": f"not installed: {', '.join(absent)}", "failures": []}
    command = [sys.executable, "-m", "pytest", "-q", "-rfE", "--tb=short", "-p", "no:cacheprovider", *paths]
    if on_gpu and installed("pytest-xdist"):
        # Most of the time goes into compiling kernels, on one core a process.
        command += ["-n", "4"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=max(1.0, seconds))
    except subprocess.TimeoutExpired as expired:
        printed = expired.stdout or b""
        text = printed.decode(errors="replace") if isinstance(printed, bytes) else printed
        return {"outcome": "cut off", "summary": f"after {seconds:.0f} s", "failures": [], "output": text[-8000:]}
    lines = done.stdout.strip().splitlines()
    return {
        "outcome": "passed" if done.returncode == 0 else "failed",
        "summary": lines[-1].strip("= ") if lines else f"exit status {done.returncode}",
        "failures": [line for line in lines if line.startswith(("FAILED", "ERROR"))],
        "output": "" if done.returncode == 0 else (done.stdout + done.stderr)[-20000:],
    }
