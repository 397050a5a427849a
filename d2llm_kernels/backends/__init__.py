"""Which backends there are, and which one a call gets.

The choice is made here, in plain Python and before any traced operator, from the argument of the call, else the
module's, else the environment variable ``D2LLM_KERNELS_BACKEND``, else ``auto``; for each operation on its own.
"""

import os
from typing import get_args

import torch

from d2llm_kernels.backends.cpu import Cpu
from d2llm_kernels.backends.cuda import Cuda
from d2llm_kernels.backends.folded import Folded
from d2llm_kernels.backends.protocol import Backend, Formulas, Operation, type_name
from d2llm_kernels.backends.reference import Reference
from d2llm_kernels.backends.triton import Triton
from d2llm_kernels.errors import ArgumentError, BackendError

ENVIRONMENT = "D2LLM_KERNELS_BACKEND"
_BACKENDS: dict[str, Backend] = {each.name: each for each in (Reference(), Folded(), Cpu(), Triton(), Cuda())}
NAMES = ("auto", *_BACKENDS)
#: Backends with kernels of their own, the newest hardware's first.
KERNELS = ("cuda", "triton", "cpu")
OPERATIONS: tuple[Operation, ...] = get_args(Operation)
#: What "auto" takes for tensors of a device type: the first of these that serves the operation, else ``_ANYWHERE``. No
#: shape is known on which the CUDA kernels are faster than Triton's.
FASTEST = {"cpu": ("cpu",), "cuda": ("triton", "cuda")}
_ANYWHERE = "folded"


def named(name: str) -> Backend:
    """The backend of a name.

    Raises:
        ArgumentError: if there is none.
    """
    if name not in _BACKENDS:
        raise ArgumentError(f"backend: expected one of {tuple(_BACKENDS)}, got {name!r}")
    return _BACKENDS[name]


def formulas(name: str) -> Formulas | None:
    """What a backend has that autograd differentiates itself, or None where the operators do the work."""
    return _BACKENDS[name].formulas()


def missing(name: str) -> str | None:
    """Why backend ``name`` cannot be used here, or None when it can.

    Raises:
        ArgumentError: if there is no backend of that name.
    """
    return named(name).missing()


def unsupported(name: str, operation: Operation, device: torch.device | str, dtype: torch.dtype) -> str | None:
    """Why backend ``name`` cannot serve an operation for tensors of this device and (promoted) dtype, or None."""
    backend = named(name)
    return backend.missing() or backend.unsupported(operation, torch.device(device), dtype)


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
def select(operation: Operation, backend: str, device: torch.device | str, dtype: torch.dtype) -> str:
    """Backend that a call of an operation gets for tensors of this device and (promoted) dtype.

    ``backend`` itself, or for "auto" the environment's choice, else the fastest that serves them. A type of device
    alone, such as "cuda", stands for the current one of that type.

    Raises:
        ArgumentError: if the name is unknown.
        BackendError: if a backend named explicitly cannot serve the operation; there is no silent fallback.
    """
    name, source = _requested(backend)
    if name == "auto":
        fastest = FASTEST.get(torch.device(device).type, ())
        return next((each for each in fastest if unsupported(each, operation, device, dtype) is None), _ANYWHERE)
    reason = unsupported(name, operation, device, dtype)
    if reason is not None:
        raise BackendError(f"{source}={name!r} cannot serve {operation}: {reason}; use 'auto', 'folded' or 'reference'")
    return name


__all__ = [
    "ENVIRONMENT",
    "FASTEST",
    "KERNELS",
    "NAMES",
    "OPERATIONS",
    "Backend",
    "Operation",
    "formulas",
    "missing",
    "named",
    "requested",
    "select",
    "type_name",
    "unsupported",
]
