"""Which backends exist, why the others do not, and which one a call gets.

The choice is made here, in plain Python and before any traced operator, from the argument of the call, else the
module's, else the environment variable ``D2LLM_KERNELS_BACKEND``, else ``auto``.
"""

import os
from functools import cache
from importlib.metadata import PackageNotFoundError, version

import torch

from d2llm_kernels import cpu
from d2llm_kernels.cuda import library
from d2llm_kernels.errors import ArgumentError, BackendError

ENVIRONMENT = "D2LLM_KERNELS_BACKEND"
NAMES = ("auto", "reference", "folded", "cpu", "triton", "cuda")
#: Backends with kernels of their own.
KERNELS = ("cuda", "triton", "cpu")
OPERATIONS = ("attn_pool", "iem_scores", "iem_pairs", "iem_topk", "in_batch_terms")
#: What "auto" takes for tensors of a device type: the first of these that is there and takes their dtype. No shape is
#: known on which the CUDA kernels are faster than Triton's.
FASTEST = {"cpu": ("cpu",), "cuda": ("triton", "cuda")}

_OLDEST_TRITON = (3, 5)
# Tensor cores that multiply bfloat16 came with Ampere.
_OLDEST_GPU = (8, 0)
_TRITON_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def missing(name: str) -> str | None:
    """Why backend ``name`` cannot be used here, or None when it can.

    Raises:
        ArgumentError: if there is no backend of that name.
    """
    if name not in NAMES:
        raise ArgumentError(f"backend: expected one of {NAMES}, got {name!r}")
    if name == "cpu":
        return cpu.missing()
    if name == "cuda":
        return library.missing()
    return _no_triton() if name == "triton" else None


def unsupported(name: str, device: torch.device | str, dtype: torch.dtype) -> str | None:
    """Why backend ``name`` cannot take tensors of this device and (promoted) dtype, or None when it can."""
    reason = missing(name)
    if reason is not None:
        return reason
    device = torch.device(device)
    if name == "cpu":
        return cpu.unsupported(device.type, dtype)
    if name == "cuda":
        return library.unsupported(str(device), dtype)
    return _beyond_triton(device, dtype) if name == "triton" else None


def _beyond_triton(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type == "cpu" and not interpreted():
        return (
            "Triton kernels take CUDA or ROCm tensors, and CPU tensors only under TRITON_INTERPRET=1; got CPU tensors"
        )
    if device.type not in ("cpu", "cuda"):
        return f"Triton kernels take CUDA or ROCm tensors, got {device.type} tensors"
    if device.type == "cuda":
        old = _too_old(torch.cuda.current_device() if device.index is None else device.index)
        if old is not None:
            return old
    if dtype not in _TRITON_DTYPES and not (dtype == torch.float64 and interpreted()):
        return f"Triton kernels take float16, bfloat16 and float32, got {str(dtype).removeprefix('torch.')}"
    return None


def interpreted() -> bool:
    """Whether Triton's interpreter stands in for a GPU in this process."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")


def installed_triton() -> str | None:
    """Version of the installed Triton, or None."""
    try:
        return version("triton")
    except PackageNotFoundError:
        return None


@cache
def _no_triton() -> str | None:
    found = installed_triton()
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


def requested(backend: str) -> str:
    """The backend asked for: ``backend``, or for "auto" the environment's choice, perhaps "auto" again.

    Raises:
        ArgumentError: if the name is unknown.
    """
    return _requested(backend)[0]


def _requested(backend: str) -> tuple[str, str]:
    """The backend asked for, and where it was asked for."""
    source = "backend"
    if backend == "auto":
        backend, source = os.environ.get(ENVIRONMENT) or "auto", ENVIRONMENT
    if backend not in NAMES:
        raise ArgumentError(f"{source}: expected one of {NAMES}, got {backend!r}")
    return backend, source


# The answer depends on the installation, the environment and what a graph is specialised on anyway: a compiled graph
# takes it as the constant that it was at the time of compilation.
@torch.compiler.assume_constant_result
def select(backend: str, device: torch.device | str, dtype: torch.dtype) -> str:
    """Backend that a call gets for tensors of this device and (promoted) dtype.

    ``backend`` itself, or for "auto" the environment's choice, else the fastest that takes these tensors. A type of
    device alone, such as "cuda", stands for the current one of that type.

    Raises:
        ArgumentError: if the name is unknown.
        BackendError: if a backend named explicitly cannot be used; there is no silent fallback.
    """
    name, source = _requested(backend)
    if name == "auto":
        kernels = FASTEST.get(torch.device(device).type, ())
        fitting = (kernel for kernel in kernels if unsupported(kernel, device, dtype) is None)
        return next(fitting, "folded")
    reason = unsupported(name, device, dtype)
    if reason is not None:
        raise BackendError(f"{source}={name!r}: {reason}; use 'auto', 'folded' or 'reference'")
    return name


@torch.compiler.assume_constant_result
def admits(backend: str, name: str, device: torch.device | str, dtype: torch.dtype) -> bool:
    """Whether a call that asks for ``backend`` may use backend ``name`` for tensors of this device and dtype.

    Raises:
        ArgumentError: if a name is unknown.
    """
    return requested(backend) in ("auto", name) and unsupported(name, device, dtype) is None
