"""The correctness contract of every kernel, in one place: what tests assert and what is judged before it is timed.

The yardstick is the reference in float64 on the very inputs that the kernel got, rounded to its dtype. A kernel
passes if its error is at most a factor times the error of the same-dtype reference plus a rounding floor taken
from the data, in the maximum and in the root mean square, for outputs and gradients alike.

Errors are those of a whole tensor, and its largest values set the floor: entries are sums whose terms cancel, and only
the terms' size, which their neighbours share, says what rounding does to them. Where rows are problems of their own, of
very different sizes and sums of one sign, an error as large as a small row's whole value would hide behind a large
row: there (``rows``) each row is measured by its own largest value.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

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

# Sums of the widths that are timed are longer than those of tests. Of n roundings in a row, each of a partial sum by up
# to half a step, about a quarter of sqrt(n) steps remain; torch's products sum in blocks and lose less. That much in
# float32 is granted there.
_LEFT_OF_ROUNDINGS = 0.25

# A row smaller than this is measured by it: exponentials below the smallest normal number may count as 0.
SMALLEST_ROW = 2.0**-100

# In float64 the yardstick rounds as the kernel does and has no error to compare with: each entry is held to this much
# of itself, and of 1.
_FLOAT64 = 1e-10

# Shares of the norm by which two results may differ where there is no yardstick in float64 for both: whole programs,
# compiled forms, choices.
_AGREEMENT = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-4, torch.float64: 1e-10}


@dataclass(frozen=True)
class Verdict:
    """A relative error and what is allowed; ``what`` says which error it is, or why there is none (NaN)."""

    error: float
    limit: float
    what: str = "relative error"

    @property
    def passed(self) -> bool:
        """NaN never passes."""
        return self.error <= self.limit

    @property
    def severity(self) -> float:
        """The error as a share of what is allowed, infinite where it is more."""
        if not self.passed:
            return math.inf
        return self.error / self.limit if self.error else 0.0

    def __str__(self) -> str:
        return self.what if math.isnan(self.error) else f"{self.what} {self.error:.3e}, allowed {self.limit:.3e}"


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The first that did not pass, or the one nearest to that."""
    return max(verdicts, key=lambda verdict: verdict.severity)


def judge(
    got: Sequence[Tensor],
    same: Sequence[Tensor],
    exact: Sequence[Tensor],
    dtype: torch.dtype,
    rows: Sequence[float] | None = None,
    terms: int = 0,
) -> Verdict:
    """The worst of several tensors, each as in :func:`within`; ``rows`` has one for each."""
    smallest: Sequence[float | None] = [None] * len(got) if rows is None else rows
    tensors = zip(got, same, exact, smallest, strict=True)
    return worst(within(one, two, three, dtype, row, terms) for one, two, three, row in tensors)


def within(
    got: Tensor, same: Tensor, exact: Tensor, dtype: torch.dtype, rows: float | None = None, terms: int = 0
) -> Verdict:
    """Hold ``got`` against ``exact`` (float64), allowing for the error of ``same`` (the reference in ``dtype``).

    With ``rows`` each row of the first dimension is measured by its largest value, or by ``rows`` where that is larger,
    and the floor is that of the dtype in which ``got`` comes, for sums of half precision come in float32. ``terms`` are
    those of its longest sums, where the kernel may add them one after the other.
    """
    if got.shape != exact.shape:
        return _incomparable(f"shape {tuple(got.shape)}, expected {tuple(exact.shape)}")
    roundings = _LEFT_OF_ROUNDINGS * math.sqrt(terms) + (0 if rows is None else _ROW_ROUNDINGS)
    floor = torch.finfo(dtype if rows is None else got.dtype).eps + roundings * torch.finfo(torch.float32).eps
    got, same, exact = got.detach().double(), same.detach().double(), exact.detach()
    finite = exact.isfinite()
    if not torch.equal(got[~finite], exact[~finite]):
        return _incomparable("the infinite entries differ")
    error, allowed, values = (got - exact)[finite], (same - exact)[finite], exact[finite]
    if not values.numel():
        return Verdict(0.0, 0.0)
    if not error.isfinite().all():
        return _incomparable("not finite where the yardstick is")
    if dtype == torch.float64:
        return Verdict((error.abs() / (1 + values.abs())).max().item(), _FLOAT64, "maximum error")
    if rows is not None:
        unit = _row_sizes(exact.masked_fill(~finite, 0)).clamp_min(rows)[finite]
        error, allowed, values = error / unit, allowed / unit, torch.ones_like(unit)
    three = error, allowed, values
    verdicts = [_held(_maximum, MAXIMUM_FACTOR, three, floor, "maximum error")]
    if values.numel() > 1:
        verdicts.append(_held(_rms, RMS_FACTOR, three, floor, "RMS error"))
    return worst(verdicts)


def distance(got: Tensor, exact: Tensor) -> float:
    """‖got - exact‖ / ‖exact‖ over the finite entries; NaN if the infinite ones differ."""
    got, exact = got.detach().double(), exact.detach().double()
    finite = exact.isfinite()
    if got.shape != exact.shape or not torch.equal(got[~finite], exact[~finite]):
        return math.nan
    return (got[finite] - exact[finite]).norm().item() / (exact[finite].norm().item() or 1.0)


def agreement(got: Tensor, other: Tensor, dtype: torch.dtype) -> Verdict:
    """Hold a result against another way to it in ``dtype``, where neither is the yardstick."""
    return Verdict(distance(got, other), _AGREEMENT[dtype])


def _incomparable(why: str) -> Verdict:
    return Verdict(math.nan, 0.0, why)


def _held(
    measure: Callable[[Tensor], float],
    factor: float,
    errors: tuple[Tensor, Tensor, Tensor],
    floor: float,
    what: str,
) -> Verdict:
    """One measure of the error and of what is allowed, both as shares of that of the values."""
    error, allowed, size = map(measure, errors)
    unit = size or 1.0
    return Verdict(error / unit, factor * allowed / unit + floor * size / unit, what)


def _maximum(values: Tensor) -> float:
    return values.abs().max().item()


def _rms(values: Tensor) -> float:
    return values.square().mean().sqrt().item()


def _row_sizes(values: Tensor) -> Tensor:
    """The largest magnitude of each row of the first dimension, in the shape of ``values``."""
    sizes = values.abs().flatten(1).amax(1) if values.dim() > 1 else values.abs()
    return sizes.view(-1, *[1] * (values.dim() - 1)).expand(values.shape)
