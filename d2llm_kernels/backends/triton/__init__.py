"""The Triton backend: kernels, their table of tiles, the functions that launch them. Design: docs/kernels/triton.md."""

import os
from functools import cache
from importlib.metadata import PackageNotFoundError, version

import torch

from d2llm_kernels.backends.protocol import Backend, InBatchTerms, Interaction, Lora, Operation, Pooling, type_name

_OLDEST_TRITON = (3, 5)
# Tensor cores that multiply bfloat16 came with Ampere.
_OLDEST_GPU = (8, 0)
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


class Triton(Backend):
    """Kernels for NVIDIA and AMD GPUs, and for any CPU in Triton's interpreter."""

    name = "triton"

    def missing(self) -> str | None:
        return _missing()

    def unsupported(self, operation: Operation, device: torch.device, dtype: torch.dtype) -> str | None:
        takes = "Triton kernels take CUDA or ROCm tensors"
        if device.type == "cpu" and not interpreted():
            return f"{takes}, and CPU tensors only under TRITON_INTERPRET=1; got CPU tensors"
        if device.type not in ("cpu", "cuda"):
            return f"{takes}, got {device.type} tensors"
        if device.type == "cuda":
            old = _too_old(torch.cuda.current_device() if device.index is None else device.index)
            if old is not None:
                return old
        if dtype not in _DTYPES and not (dtype == torch.float64 and interpreted()):
            return f"Triton kernels take float16, bfloat16 and float32, got {type_name(dtype)}"
        return None

    def pooling(self) -> Pooling:
        from d2llm_kernels.backends.triton import operations

        return operations

    def interaction(self) -> Interaction:
        from d2llm_kernels.backends.triton import operations

        return operations

    def in_batch(self) -> InBatchTerms:
        from d2llm_kernels.backends.triton import operations

        return operations

    def lora(self) -> Lora:
        from d2llm_kernels.backends.triton import operations

        return operations


def interpreted() -> bool:
    """Whether Triton's interpreter stands in for a GPU in this process."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")


def installed() -> str | None:
    """Version of the installed Triton, or None."""
    try:
        return version("triton")
    except PackageNotFoundError:
        return None


@cache
def _missing() -> str | None:
    found = installed()
    if found is None:
        return "the package triton is not installed"
    if tuple(int(part) for part in found.split(".")[:2]) < _OLDEST_TRITON:
        return f"triton {found} is older than {'.'.join(map(str, _OLDEST_TRITON))}"
    if interpreted():
        return None
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    reasons = [_too_old(index) for index in range(torch.cuda.device_count())]
    return None if None in reasons else reasons[0]


@cache
def _too_old(index: int) -> str | None:
    """Why one of the GPUs cannot run the Triton kernels, or None when it can: a machine may have several kinds."""
    if torch.version.cuda and torch.cuda.get_device_capability(index) < _OLDEST_GPU:
        return f"the compute capability of GPU {index} is below {'.'.join(map(str, _OLDEST_GPU))}"
    return None
