"""What a row of the report is made of, and how one is measured: judged first, timed only if right."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from benchmarks.gpu_report.ceilings import Ceilings
from benchmarks.gpu_report.problems import Verdict
from benchmarks.gpu_report.timing import Function, Sample, Timer
from d2llm_kernels.backends import missing

LITERAL, COMPILED, FOLDED = "reference", "reference compiled", "folded"
KERNELS = ("cuda", "triton")

Wrap = Callable[[Function], Function]


@dataclass(frozen=True)
class Target:
    """What an operation is to reach: times as fast as the literal form, percent of its ceiling, milliseconds."""

    ratio: float | None = None
    percent: float | None = None
    milliseconds: float | None = None

    def misses(self, ratio: float | None, percent: float | None, seconds: float) -> list[str]:
        """What was not reached or could not be compared."""
        found = []
        if self.ratio is not None and (ratio is None or ratio < self.ratio):
            found.append(f">= {self.ratio:g}x")
        if self.percent is not None and (percent is None or percent < self.percent):
            found.append(f">= {self.percent:g} %")
        if self.milliseconds is not None and seconds * 1e3 > self.milliseconds:
            found.append(f"<= {self.milliseconds:g} ms")
        return found


@dataclass(frozen=True)
class Call:
    """Something to time. ``share`` is the part of the row's work that it does; its time is divided by that."""

    run: Function
    share: float = 1.0


@dataclass
class Prepared:
    """A row with its tensors in place.

    Args:
        flops, traffic: fewest operations, and fewest bytes to and from memory.
        kernel: the call with a backend that is not literal.
        literal: the literal form, its function passed through what it is given (nothing, or ``torch.compile``).
        check: judges a backend.
        literal_bytes: what the literal form holds at once, at least, for the whole row.
    """

    flops: float
    traffic: float
    kernel: Callable[[str], Call]
    literal: Callable[[Wrap], Call]
    check: Callable[[str], Verdict]
    literal_bytes: int


@dataclass(frozen=True)
class Case:
    """A row to measure. Lower ``priority`` comes first; ``compiled`` also compiles the literal form."""

    operation: str
    shape: str
    dtype: torch.dtype
    priority: int
    prepare: Callable[[torch.device], Prepared]
    target: Target = field(default_factory=Target)
    compiled: bool = False

    @property
    def name(self) -> str:
        """Operation, shape and dtype."""
        return f"{self.operation} {self.shape} {dtype_name(self.dtype)}"


def dtype_name(dtype: torch.dtype) -> str:
    """ "bfloat16" for torch.bfloat16."""
    return str(dtype).removeprefix("torch.")


def kernels_here() -> list[str]:
    """Backends with kernels that can run here."""
    return [name for name in KERNELS if missing(name) is None]


def identity(function: Function) -> Function:
    """The literal form as it is."""
    return function


def measure(case: Case, timer: Timer, ceilings: Ceilings, backends: Iterable[str]) -> dict[str, Any]:
    """The row of a case: every backend judged, then timed, then the literal form."""
    prepared = case.prepare(timer.device)
    floor, bound = ceilings.floor(case.dtype, prepared.flops, prepared.traffic)
    row: dict[str, Any] = {
        "operation": case.operation,
        "shape": case.shape,
        "dtype": dtype_name(case.dtype),
        "flops": prepared.flops,
        "bytes": prepared.traffic,
        "floor_s": floor,
        "bound": bound,
        "literal_bytes": prepared.literal_bytes,
        "target": {name: value for name, value in asdict(case.target).items() if value is not None},
        "variants": {},
    }
    for backend in (*backends, FOLDED):
        row["variants"][backend] = _variant(timer, prepared.kernel, backend, floor, lambda name: prepared.check(name))
    row["variants"][LITERAL] = _variant(timer, lambda _: prepared.literal(identity), LITERAL, floor)
    compare(row, case)
    return row


def measure_compiled(case: Case, timer: Timer, row: dict[str, Any], wrap: Wrap) -> None:
    """Add the literal form under ``torch.compile`` to a row."""
    prepared = case.prepare(timer.device)
    row["variants"][COMPILED] = _variant(timer, lambda _: prepared.literal(wrap), COMPILED, row["floor_s"])
    torch.compiler.reset()
    compare(row, case)


def _variant(
    timer: Timer,
    make: Callable[[str], Call],
    name: str,
    floor: float,
    check: Callable[[str], Verdict] | None = None,
) -> dict[str, Any]:
    """One cell of a row: figures, or why there are none."""
    found: dict[str, Any] = {}
    try:
        if check is not None:
            verdict = check(name)
            found |= {"error": verdict.error, "limit": verdict.limit}
            if not verdict.passed:
                return found | {"failure": f"wrong: relative error {verdict.error:.1e}, allowed {verdict.limit:.1e}"}
        call = make(name)
        found |= _figures(timer.sample(call.run), call.share, floor)
    except Exception as error:
        # One variant that does not fit or does not compile must not take the others with it.
        found["failure"] = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"[:300]
    timer.free()
    return found


def _figures(sample: Sample, share: float, floor: float) -> dict[str, Any]:
    seconds = sample.median_s / share
    return {
        "median_s": seconds,
        "low_s": sample.low_s / share,
        "high_s": sample.high_s / share,
        "spread": sample.spread,
        "runs": sample.runs,
        "host_s": sample.host_s,
        "peak_bytes": sample.peak_bytes,
        "share": share,
        "percent": 100 * floor / seconds,
    }


def compare(row: dict[str, Any], case: Case) -> None:
    """Fill in how many times as fast as each other variant the kernels are, and which targets they miss."""
    for name, variant in row["variants"].items():
        if name not in KERNELS or "median_s" not in variant:
            continue
        variant["ratios"] = {
            other: found["median_s"] / variant["median_s"]
            for other, found in row["variants"].items()
            if other not in KERNELS and "median_s" in found
        }
        variant["missed"] = case.target.misses(variant["ratios"].get(LITERAL), variant["percent"], variant["median_s"])
