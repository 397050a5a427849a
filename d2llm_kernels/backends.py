"""Which backends exist, why the others do not, and which one a call gets.

The choice is made here, in plain Python and before any traced operator, from the argument of the call,
else the module's, else the environment variable ``D2LLM_KERNELS_BACKEND``, else ``auto``.
"""

import os

import torch
from torch import Tensor

from d2llm_kernels import cpu
from d2llm_kernels.errors import ArgumentError, BackendError

ENVIRONMENT = "D2LLM_KERNELS_BACKEND"
NAMES = ("auto", "reference", "folded", "cpu", "triton", "cuda")
OPERATIONS = ("attn_pool", "iem_scores", "iem_pairs", "iem_topk")

_MISSING = {
    "triton": "this version of d2llm_kernels has no Triton kernels",
    "cuda": "the CUDA extension is not built in this installation",
}


def missing(name: str) -> str | None:
    """Why backend ``name`` cannot be used here, or None when it can.

    Raises:
        ArgumentError: if there is no backend of that name.
    """
    if name not in NAMES:
        raise ArgumentError(f"backend: expected one of {NAMES}, got {name!r}")
    if name == "cpu":
        return cpu.missing()
    return _MISSING.get(name)


# The answer depends on the installation and the environment, not on tensors: a compiled graph takes it as
# the constant that it was at the time of compilation.
@torch.compiler.assume_constant_result
def select(requested: str) -> str:
    """Backend that a call gets: ``requested``, or for "auto" the environment's choice, else the fastest present.

    Raises:
        ArgumentError: if the name is unknown.
        BackendError: if a backend named explicitly is missing; there is no silent fallback.
    """
    source = "backend"
    if requested == "auto":
        requested = os.environ.get(ENVIRONMENT) or "auto"
        source = ENVIRONMENT
    if requested not in NAMES:
        raise ArgumentError(f"{source}: expected one of {NAMES}, got {requested!r}")
    if requested == "auto":
        return "folded"
    reason = missing(requested)
    if reason is not None:
        raise BackendError(f"{source}={requested!r}: {reason}; use 'auto', 'folded' or 'reference'")
    return requested


def select_for(requested: str, *tensors: Tensor) -> str:
    """Backend that a call on these tensors gets: as ``select``, but "auto" takes the C++ kernels where they fit.

    Raises:
        ArgumentError, BackendError: as ``select``; BackendError too if "cpu" is named and does not take the tensors.
    """
    chosen = select(requested)
    if chosen == "cpu" and not cpu.supports(*tensors):
        found = sorted({f"{tensor.device.type} {str(tensor.dtype).removeprefix('torch.')}" for tensor in tensors})
        raise BackendError(f"backend='cpu': expected {cpu.SUPPORTED}, got {', '.join(found)}")
    free = requested == "auto" and chosen == "folded"
    return "cpu" if free and cpu.supports(*tensors) and _cpu_chosen() else chosen


@torch.compiler.assume_constant_result
def _cpu_chosen() -> bool:
    """Whether "auto" may mean the C++ kernels: they are there and the environment names nothing else."""
    return (os.environ.get(ENVIRONMENT) or "auto") == "auto" and missing("cpu") is None
