"""The compiled library of the CUDA kernels: where it is, whether it can be used, its operators.

It is a library of its own, so that a torch without CUDA loads that of the CPU. Built against the emulation of
``tests/emulation`` it takes CPU tensors instead.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any

import torch

from d2llm_kernels.backends import extension
from d2llm_kernels.backends.protocol import type_name

#: Another file to load in place of the installed library.
LIBRARY = "D2LLM_KERNELS_CUDA_LIBRARY"
#: "1": kernels for one GPU that have yet to prove faster run where they can. Read when the library is loaded.
EXPERIMENTAL = "D2LLM_KERNELS_EXPERIMENTAL"
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_EXTENSION = extension.Extension("_cuda", LIBRARY)
_OLDEST_GPU = (8, 0)


@cache
def missing() -> str | None:
    """Why the library cannot be used here, or None once it is loaded and one of the GPUs runs it."""
    return extension.missing(_EXTENSION) or (None if emulated() else _no_gpu())


@cache
def module() -> ModuleType:
    """The extension's module; importing it registers the operators. Its ``launches()`` counts launches by kernel.

    Raises:
        ImportError: if there is none, or it does not fit.
    """
    loaded = extension.load(_EXTENSION)
    loaded.use_experimental(os.environ.get(EXPERIMENTAL) == "1")
    return loaded


@cache
def operators() -> Any:
    """The namespace of the library's operators."""
    module()
    return torch.ops.d2llm_cuda


@contextmanager
def experimental(wanted: bool = True) -> Iterator[None]:
    """Whether kernels for one GPU that have yet to prove faster run inside, whatever the environment said.

    Where the library is missing there is nothing to choose.
    """
    if missing() is not None:
        yield
        return
    before = module().use_experimental(wanted)
    try:
        yield
    finally:
        module().use_experimental(before)


def emulated() -> bool:
    """Whether the loaded library runs its kernels on a CPU, for tests."""
    return bool(module().build_info()["architectures"] == "emulated")


def unsupported(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the kernels cannot take tensors of this device and (promoted) dtype, or None when they can."""
    expected, kind = "cpu" if emulated() else "cuda", device.type
    if kind != expected:
        return f"the CUDA kernels take {expected} tensors, got {kind} tensors"
    if kind == "cuda" and (misfits := _misfits()):
        reason = misfits.get(torch.cuda.current_device() if device.index is None else device.index)
        if reason is not None:
            return reason
    if dtype not in DTYPES:
        return f"the CUDA kernels take float16, bfloat16 and float32, got {type_name(dtype)}"
    return None


def _no_gpu() -> str | None:
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    misfits = _misfits()
    return "; ".join(misfits.values()) if len(misfits) == torch.cuda.device_count() else None


@cache
def _misfits() -> dict[int, str]:
    """The GPUs that cannot run the kernels, and why."""
    built, found = module().build_info()["architectures"], {}
    for index in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(index)
        if capability < _OLDEST_GPU:
            found[index] = f"cuda:{index} has a compute capability below {'.'.join(map(str, _OLDEST_GPU))}"
        elif not _fits(built, capability):
            found[index] = f"built for {built}, cuda:{index} is sm_{capability[0]}{capability[1]}"
    return found


def _fits(built: str, capability: tuple[int, int]) -> bool:
    """Whether one of the architectures, as TORCH_CUDA_ARCH_LIST writes them, runs on a GPU.

    Code for one minor version runs on later ones of its major version; PTX is compiled for any later one; code for an
    architecture's own features ("9.0a") runs on that one alone.
    """
    for major, minor, own, ptx in re.findall(r"(\d+)\.(\d)([af]?)(\+PTX)?", built):
        version = (int(major), int(minor))
        if version == capability or (ptx and version <= capability):
            return True
        if not own and version[0] == capability[0] and version <= capability:
            return True
    return False
