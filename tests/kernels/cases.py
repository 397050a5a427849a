"""Backends that the parity tests run on, each with the dtypes it takes, and what decides whether a test can run."""

import math
from collections.abc import Callable, Sequence
from functools import cache

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


def needs_even_products(backend: str, dtype: torch.dtype, width: int) -> None:
    """Skip a test of equal bits at another place where it is torch's product that gives other ones.

    The C++ kernels promise equal bits themselves. The folded form lays rows out alike and hands them to whatever BLAS
    torch has: MKL did right by them with every choice of instructions, but not with each of MKL_CBWR.
    """
    if backend == "folded" and not _even_products(dtype, width):
        pytest.skip(f"torch's {dtype} product of width {width} gives equal rows other bits at another place here")


@cache
def _even_products(dtype: torch.dtype, width: int) -> bool:
    """Whether whole groups of equal rows have equal bits, in products of any height."""
    generator = torch.Generator().manual_seed(0)
    room, wide = -(-width // 16) * 16, torch.promote_types(dtype, torch.float32)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    for _ in range(8):
        row, weight, bias, last = normal(width).relu(), normal(width, width), normal(width), normal(width)
        rows = row.new_empty(1024, room)[:, :width].copy_(row)
        first = None
        for height in (16, 32, 48, 256, 272, 512, 1024):
            hidden = torch.addmm(bias, rows[:height], weight.T, out=row.new_empty(height, room)[:, :width])
            z = torch.mv(hidden.to(wide), last.to(wide))
            first = (hidden[0].clone(), z[0].clone()) if first is None else first
            if (hidden != first[0]).any() or (z != first[1]).any():
                return False
    return True


def apart(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors with NaN between any two elements: a kernel that takes them for contiguous reads it."""
    return [torch.stack([tensor, torch.full_like(tensor, math.nan)], -1)[..., 0] for tensor in tensors]


def with_gradients(function: Callable[..., Tensor | tuple[Tensor, ...]], tensors: Sequence[Tensor]) -> list[Tensor]:
    """The outputs of ``function`` and the gradients of their sum, for tensors taken as they lie."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    outputs = function(*leaves)
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    return [*outputs, *torch.autograd.grad(sum(output.sum() for output in outputs), leaves)]
