"""What runs before anything is timed: the build, and the parity tests in a process of their own."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from d2llm.bench.machine import installed
from d2llm_kernels import backends

ROOT = Path(__file__).parents[2]
SANITIZERS = ("memcheck", "racecheck")
# Where toolkits put their tools when PATH does not say.
_TOOLKIT = ("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer")


def build() -> list[str]:
    """Build the CUDA kernels in place, before anything looks for them; a line for each thing that cannot be used."""
    if torch.version.cuda:
        command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
        environment = os.environ | {"D2LLM_KERNELS_BUILD": "cuda"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            return [f"backend cuda: {(done.stdout + done.stderr)[-2000:]}"]
    return [f"backend {name}: {reason}" for name in ("cpu", "cuda") if (reason := backends.missing(name))]


def sanitize(tool: str, seconds: float) -> dict[str, Any]:
    """The parity tests of the CUDA kernels under a tool of compute-sanitizer, such as "memcheck"."""
    found = shutil.which("compute-sanitizer", path=os.pathsep.join((os.environ["PATH"], *_TOOLKIT)))
    if found is None:
        return {"outcome": "skipped", "summary": "no compute-sanitizer", "failures": []}
    command = [found, "--tool", tool, "--error-exitcode", "9"]
    return tests(["tests/gpu", "-k", "cuda and parity and not llms and not full"], seconds, False, command)


def tests(paths: list[str], seconds: float, on_gpu: bool, under: Sequence[str] = ()) -> dict[str, Any]:
    """Run pytest on ``paths`` in a process of its own and say how it went: passed, failed, cut off or skipped.

    Args:
        under: a command that runs another one, to run pytest under.
    """
    absent = [name for name in ("pytest", "tokenizers", "transformers") if installed(name) is None]
    if absent:
        return {"outcome": "skipped", "summary": f"not installed: {', '.join(absent)}", "failures": []}
    command = [*under, sys.executable, "-m", "pytest", "-q", "-rfE", "--tb=short", "-p", "no:cacheprovider", *paths]
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
