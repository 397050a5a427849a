"""Backends that the parity tests run on, each with the dtypes it takes."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from d2llm_kernels import backends

_DTYPES = {
    "folded": (torch.float64, torch.float32, torch.bfloat16),
    "cpu": (torch.float32, torch.bfloat16),
}


# How many threads the backend shares its work out over itself; None leaves it to torch.
_THREADS = {"cpu": (1, 2, 4)}


def _param(*values: object, label: str | None = None) -> object:
    reason = backends.missing(str(values[0]))
    marks = [pytest.mark.skip(reason=reason)] if reason else []
    return pytest.param(*values, marks=marks, id=label)


def _parity(name: str, dtype: torch.dtype, threads: int | None) -> object:
    label = f"{name}-{str(dtype).removeprefix('torch.')}" + (f"-{threads}threads" if threads else "")
    return _param(name, dtype, threads, label=label)


#: Names of the backends.
BACKENDS = [_param(name) for name in _DTYPES]
#: (backend, dtype).
CASES = [_param(name, dtype) for name, dtypes in _DTYPES.items() for dtype in dtypes]
#: (backend, dtype, threads) of the parity tests; the fixture `threads` sets the number.
PARITY = [
    _parity(name, dtype, threads)
    for name, dtypes in _DTYPES.items()
    for dtype in dtypes
    for threads in _THREADS.get(name, (None,))
]


def apart(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors with NaN between any two elements: a kernel that takes them for contiguous reads it."""
    return [torch.stack([tensor, torch.full_like(tensor, math.nan)], -1)[..., 0] for tensor in tensors]


def with_gradients(function: Callable[..., Tensor | tuple[Tensor, ...]], tensors: Sequence[Tensor]) -> list[Tensor]:
    """The outputs of ``function`` and the gradients of their sum, for tensors taken as they lie."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    outputs = function(*leaves)
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    return [*outputs, *torch.autograd.grad(sum(output.sum() for output in outputs), leaves)]
