"""Where and with what figures were made."""

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from d2llm_kernels import backends
from d2llm_kernels.backends.cpu import library

_PACKAGES = ("d2llm", "torch", "triton", "transformers", "numpy")
_SOURCE = Path(__file__).parents[2]


def facts(device: torch.device) -> dict[str, Any]:
    """Processor, memory, versions, revision, backends and the tiles of their kernels, as plain values."""
    on_gpu = device.type == "cuda"
    status = git("status", "--porcelain")
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else processor(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: installed(name) for name in _PACKAGES},
        "revision": git("rev-parse", "HEAD"),
        "dirty": None if status is None else bool(status),
        "backends": {name: backends.missing(name) or "available" for name in backends.NAMES[1:]},
        **(_gpu(device) if on_gpu else _cpu()),
    }


def slug(machine: dict[str, Any]) -> str:
    """A folder's name for a machine, such as "nvidia-h100-80gb-hbm3" or "cpu-amd-epyc-2-threads"."""
    threads = machine.get("threads")
    name = machine["device"] if threads is None else f"cpu {machine['device']} {threads} threads"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def processor() -> str:
    """The model of this machine's CPU, or its architecture where nobody tells more."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names and names[0] else platform.processor() or platform.machine()


def installed(name: str) -> str | None:
    """Version of an installed package, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def git(*arguments: str) -> str | None:
    """What git says of the project's clone, or None outside one."""
    return output("git", "-C", str(_SOURCE), *arguments)


def output(*command: str) -> str | None:
    """What a command prints, or None where it is missing or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _gpu(device: torch.device) -> dict[str, Any]:
    # Only where there is a GPU is Triton sure to be there.
    from d2llm_kernels.backends.triton import table

    arch = table.architecture(device)
    properties = torch.cuda.get_device_properties(device)
    return {
        "architecture": arch,
        "tiles": sorted({row["source"] for row in table.rows() if arch in row["archs"]}),
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": getattr(properties, "L2_cache_size", None),
        "driver": output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "cuda": torch.version.cuda,
    }


def _cpu() -> dict[str, Any]:
    return {
        "architecture": platform.machine(),
        "kernels": None if library.missing() else library.module().build_info(),
        "threads": torch.get_num_threads(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }
