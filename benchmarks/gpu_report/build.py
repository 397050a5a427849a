"""The build of the CUDA kernels, into a folder of the report."""

import os
import sys
from pathlib import Path

import torch

from benchmarks.gpu_report import children
from d2llm_kernels.backends.cuda import library


def build(folder: Path, seconds: float) -> str:
    """Build the library below ``folder`` and have this process and its children load that one; what was done.

    Raises:
        RuntimeError: if it does not compile, or not in time.
    """
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if os.environ.get(library.LIBRARY) and not _built(folder):
        return f"{library.LIBRARY} names one"
    places = ["--build-temp", str(_place(folder) / "temp"), "--build-lib", str(_place(folder) / "lib")]
    command = [sys.executable, "setup.py", "--quiet", "build_ext", *places]
    log = folder / "build.txt"
    status = children.run(command, seconds, log, D2LLM_KERNELS_BUILD="cuda")
    if status is None:
        raise RuntimeError(f"not compiled after {seconds:.0f} s; a later call goes on")
    if status:
        raise RuntimeError(log.read_text(errors="replace").strip()[-2000:] or f"exit status {status}")
    use(folder)
    return "built"


def use(folder: Path) -> None:
    """Load the library below ``folder`` if there is one."""
    for path in _built(folder):
        os.environ[library.LIBRARY] = str(path)
        library.missing.cache_clear()


def _built(folder: Path) -> list[Path]:
    return list((_place(folder) / "lib").rglob("_cuda*"))


def _place(folder: Path) -> Path:
    return (folder / "work/build").absolute()
