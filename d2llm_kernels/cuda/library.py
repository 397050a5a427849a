"""The compiled library of the CUDA kernels: where it is, whether it can be used, its operators.

It is a library of its own, so that a torch without CUDA loads that of the CPU. Built against the emulation of
``tests/emulation`` it takes CPU tensors instead.
"""

import re
from functools import cache
from types import ModuleType
from typing import Any

import torch

from d2llm_kernels import extension

#: Another file to load in place of the installed library.
LIBRARY = "D2LLM_KERNELS_CUDA_LIBRARY"
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_EXTENSION = extension.Extension("_cuda", LIBRARY)
_OLDEST_GPU = (8, 0)


@cache
def missing() -> str | None:
    """Why the library cannot be used here, or None once it is loaded."""
    return extension.missing(_EXTENSION) or (None if emulated() else _no_gpu())


def module() -> ModuleType:
    """The extension's module; importing it registers the operators.

    Raises:
        ImportError: if there is none, or it does not fit.
    """
    return extension.load(_EXTENSION)


def operators() -> Any:
    """The namespace of the library's operators."""
    module()
    return torch.ops.d2llm_cuda


def emulated() -> bool:
    """Whether the loaded library runs its kernels on a CPU, for tests."""
    return bool(module().build_info()["emulated"])


def unsupported(device: str, dtype: torch.dtype) -> str | None:
    """Why the kernels cannot take tensors of this device type and (promoted) dtype, or None when they can."""
    expected = "cpu" if emulated() else "cuda"
    if device != expected:
        return f"the CUDA kernels take {expected} tensors, got {device} tensors"
    if dtype not in DTYPES:
        return f"the CUDA kernels take float16, bfloat16 and float32, got {str(dtype).removeprefix('torch.')}"
    return None


def _no_gpu() -> str | None:
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    capability = torch.cuda.get_device_capability()
    if capability < _OLDEST_GPU:
        return f"the GPU's compute capability is below {'.'.join(map(str, _OLDEST_GPU))}"
    built = module().build_info()["architectures"]
    return None if _fits(built, capability) else f"built for {built}, the GPU is sm_{capability[0]}{capability[1]}"


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
