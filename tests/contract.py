"""The correctness contract of every kernel, in one place.

The yardstick is the reference in float64 on the very inputs that the kernel got, rounded to its dtype. A kernel
passes if its error is at most a factor times the error of the same-dtype reference plus a rounding floor taken
from the data, in the maximum and in the root mean square, for outputs and gradients alike. Inputs lie between bands
of NaN, and what a kernel allocates is full of NaN before it writes: a read beside the data or an entry that nobody
writes cannot pass. Kernel and references get the same tensors on the same device.

Errors are those of a whole tensor, and its largest values set the floor: entries are sums whose terms cancel, and only
the terms' size, which their neighbours share, says what rounding does to them. Where rows are problems of their own, of
very different sizes and sums of one sign, an error as large as a small row's whole value would hide behind a large
row: there (``rows``) each row is measured by its own largest value.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

# Another order of summation is another draw from the same rounding errors. Averaged over a tensor, twice the
# reference's error leaves room for that and catches the loss of a bit. The maximum is one entry's draw: between
# two correct orders of summation ratios of 3.4 were seen, so it gets 4. Of a single number there is no average: its RMS
# is its maximum, that same one draw, and is held to the maximum's factor alone.
MAXIMUM_FACTOR = 4.0
RMS_FACTOR = 2.0

# Measured row by row, ties leave the reference without an error, and it no longer tells what rounding does: at the
# logarithm of 2, say, which kernels reach through two exponentials, a quotient, a logarithm and a product. That many
# roundings in float32 are granted beside the result's own.
_ROW_ROUNDINGS = 4

# A row smaller than this is measured by it: exponentials below the smallest normal number may count as 0.
SMALLEST_ROW = 2.0**-100

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
    """Hold ``got`` against ``exact`` (float64), allowing for the error of ``same`` (the reference in ``dtype``).

    With ``rows`` each row of the first dimension is measured by its largest value, or by ``rows`` where that is larger,
    and the floor is that of the dtype in which ``got`` comes, for sums of half precision come in float32.
    """
    assert got.shape == exact.shape, f"{name}: shape {tuple(got.shape)}, expected {tuple(exact.shape)}"
    if exact.numel() == 0:
        return
    floor = torch.finfo(dtype).eps
    if rows is not None:
        floor = torch.finfo(got.dtype).eps + _ROW_ROUNDINGS * torch.finfo(torch.float32).eps
    got, same = got.detach().double(), same.detach().double()
    finite = exact.isfinite()
    assert torch.equal(got[~finite], exact[~finite]), f"{name}: the infinite entries differ"
    error, allowed, values = (got - exact)[finite], (same - exact)[finite], exact[finite]
    if rows is not None:
        unit = _row_sizes(exact.masked_fill(~finite, 0)).clamp_min(rows)[finite]
        error, allowed, values = error / unit, allowed / unit, torch.ones_like(unit)
    if not values.numel():
        return
    assert error.isfinite().all(), f"{name}: not finite where the yardstick is"
    for kind, factor, measure in (
        ("maximum", MAXIMUM_FACTOR, lambda t: t.abs().max()),
        ("RMS", RMS_FACTOR, lambda t: t.square().mean().sqrt()),
    ):
        if kind == "RMS" and values.numel() == 1:
            continue
        limit = factor * measure(allowed) + floor * measure(values)
        assert measure(error) <= limit, f"{name}: {kind} error {measure(error):.3e}, allowed {limit:.3e}"


def _row_sizes(values: Tensor) -> Tensor:
    """The largest magnitude of each row of the first dimension, in the shape of ``values``."""
    sizes = values.abs().flatten(1).amax(1) if values.dim() > 1 else values.abs()
    return sizes.view(-1, *[1] * (values.dim() - 1)).expand(values.shape)


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

    ``rows``: as in ``assert_within``, one for each output; the gradients, to which all outputs add, take the largest.
    """
    inputs = [tensor.to(dtype) for tensor in tensors]
    with poisoned():
        got = run(kernel, inputs)
    same = run(reference, inputs)
    exact = run(reference, [tensor.double() for tensor in inputs])
    for kind, g, s, e in zip(("output", "gradient"), got, same, exact, strict=True):
        for index, (one, two, three) in enumerate(zip(g, s, e, strict=True)):
            if dtype == torch.float64:
                torch.testing.assert_close(one, three, rtol=1e-10, atol=1e-10)
            else:
                smallest = rows if rows is None else rows[index] if kind == "output" else max(rows)
                assert_within(one, two, three, dtype, f"{kind} {index}", smallest)
