"""The correctness contract of every kernel, asserted: ``d2llm_kernels.measure.contract`` has its factors and reasons.

Inputs lie between bands of NaN, and what a kernel allocates is full of NaN before it writes: a read beside the data or
an entry that nobody writes cannot pass. Kernel and references get the same tensors on the same device.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from d2llm_kernels.measure.contract import within

# Elements of NaN on either side of a guarded input, more than any block that a kernel reads at once.
_BAND = 1024

Function = Callable[..., tuple[Tensor, ...]]


def guarded(tensor: Tensor) -> Tensor:
    """A copy whose rows are contiguous but apart, with NaN before, between and after them."""
    width = tensor.shape[-1] if tensor.dim() else 1
    rows = tensor.numel() // width if width else 0
    step = width + 16
    buffer = tensor.new_full((2 * _BAND + rows * step,), math.nan)
    shape = tensor.shape if tensor.dim() > 1 else (1, *tensor.shape)
    strides, stride = [1], step
    for size in reversed(shape[:-1]):
        strides.insert(0, stride)
        stride *= size
    view = buffer.as_strided(tensor.shape, strides[-tensor.dim() :] if tensor.dim() else (), _BAND)
    return view.copy_(tensor)


@contextmanager
def poisoned() -> Iterator[None]:
    """Fill what torch allocates without a value with NaN (integers with their largest value)."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def assert_within(
    got: Tensor, same: Tensor, exact: Tensor, dtype: torch.dtype, name: str = "output", rows: float | None = None
) -> None:
    """Assert that :func:`~d2llm_kernels.measure.contract.within` passes ``got``; arguments are its own."""
    verdict = within(got, same, exact, dtype, rows)
    assert verdict.passed, f"{name}: {verdict}"


def run(function: Function, tensors: Sequence[Tensor], seed: int = 0) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs of ``function`` and the gradients of a fixed random weighting of the finite ones."""
    leaves = [guarded(tensor.detach()).requires_grad_() for tensor in tensors]
    outputs = function(*leaves)
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros((), dtype=torch.float64)
    for output in outputs:
        weights = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output)
        total = total + (output.masked_fill(~output.isfinite(), 0) * weights).sum().double().cpu()
    gradients = torch.autograd.grad(total, leaves, allow_unused=True)
    filled = [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, gradients, strict=True)]
    return [output.detach() for output in outputs], filled


def assert_parity(
    kernel: Function,
    reference: Function,
    tensors: Sequence[Tensor],
    dtype: torch.dtype,
    rows: Sequence[float] | None = None,
) -> None:
    """Run kernel and reference forward and backward on ``tensors`` cast to ``dtype`` and apply the contract.

    ``rows``: as in ``within``, one for each output; the gradients, to which all outputs add, take the largest.
    """
    inputs = [tensor.to(dtype) for tensor in tensors]
    with poisoned():
        got = run(kernel, inputs)
    same = run(reference, inputs)
    exact = run(reference, [tensor.double() for tensor in inputs])
    for kind, g, s, e in zip(("output", "gradient"), got, same, exact, strict=True):
        for index, (one, two, three) in enumerate(zip(g, s, e, strict=True)):
            smallest = rows if rows is None else rows[index] if kind == "output" else max(rows)
            assert_within(one, two, three, dtype, f"{kind} {index}", smallest)
