"""Where and with what a report was made."""

import platform
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from d2llm_kernels import backends
from d2llm_kernels.triton import table

ROOT = Path(__file__).parents[2]


def facts(device: torch.device) -> dict[str, Any]:
    """GPU, driver, versions, revision, backends and the source of the tiles, as plain values."""
    on_gpu = device.type == "cuda"
    properties = torch.cuda.get_device_properties(device) if on_gpu else None
    arch = table.architecture(device)
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else f"CPU ({platform.machine()}), Triton's interpreter",
        "architecture": arch,
        "multiprocessors": getattr(properties, "multi_processor_count", None),
        "memory_bytes": getattr(properties, "total_memory", None),
        "l2_bytes": getattr(properties, "L2_cache_size", None),
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") if on_gpu else None,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("torch", "triton", "transformers", "numpy")},
        "revision": _output("git", "rev-parse", "HEAD"),
        "dirty": None if (status := _output("git", "status", "--porcelain")) is None else bool(status),
        "backends": {name: backends.missing(name) or "available" for name in backends.NAMES[1:]},
        "tiles": sorted({row["source"] for row in table.rows() if arch in row["archs"]}),
    }


def slug(device: str) -> str:
    """A folder's name for a device: "NVIDIA H100 80GB HBM3" gives "nvidia-h100-80gb-hbm3"."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def build() -> list[str]:
    """Build what is compiled ahead of time; return a line for each thing that could not be.

    Nothing is, yet. A compiled backend builds its extension here, in place, before anything looks for it.
    """
    return [f"backend {name}: {reason}" for name in ("cpu", "cuda") if (reason := backends.missing(name))]


def tests(paths: list[str], seconds: float, on_gpu: bool) -> dict[str, Any]:
    """Run pytest on ``paths`` in a process of its own and say how it went: passed, failed, cut off or skipped."""
    absent = [name for name in ("pytest", "tokenizers", "transformers") if _version(name) is None]
    if absent:
        return {"outcome": "skipped", "summary": f"not installed: {', '.join(absent)}", "failures": []}
    command = [sys.executable, "-m", "pytest", "-q", "-rfE", "--tb=short", "-p", "no:cacheprovider", *paths]
    if on_gpu and _version("pytest-xdist"):
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


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _output(*command: str) -> str | None:
    """What a command prints, or None where it is missing or fails (git outside a clone, say)."""
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
