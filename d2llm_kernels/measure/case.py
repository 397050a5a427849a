"""What a row is made of, and how one is measured: judged first, timed only if right."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from d2llm_kernels.backends import KERNELS, unsupported
from d2llm_kernels.measure.ceilings import Ceilings
from d2llm_kernels.measure.contract import Verdict, agreement
from d2llm_kernels.measure.timing import Function, Sample, Timer

LITERAL, COMPILED, FOLDED = "reference", "reference compiled", "folded"

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
        check: judges a backend, or one of the row's peers.
        literal_bytes: what the literal form holds at once, at least, for the whole row; 0 where nobody counted.
        peers: what the row names as peers of the backends.
        items: what a call handles, such as tokens or queries, and how many.
        facts: further figures of the row that do not depend on the backend, by name.
    """

    flops: float
    traffic: float
    kernel: Callable[[str], Call]
    literal: Callable[[Wrap], Call]
    check: Callable[[str], Verdict]
    literal_bytes: int = 0
    peers: Mapping[str, Callable[[], Call]] = field(default_factory=dict)
    items: tuple[str, float] | None = None
    facts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """A row to measure.

    Args:
        operation, shape, dtype: what is timed.
        priority: lower ones come first where time is short.
        prepare: makes the tensors on a device.
        target: what the kernels are to reach.
        compiled: whether the literal form is also timed under ``torch.compile``.
        literal: whether the literal form is timed.
        peers: other ways to the same result, timed beside the backends.
        backends: the backends of the row, of which it times those that take its dtype on the device; by default all.
    """

    operation: str
    shape: str
    dtype: torch.dtype
    priority: int
    prepare: Callable[[torch.device], Prepared]
    target: Target = field(default_factory=Target)
    compiled: bool = False
    literal: bool = True
    peers: tuple[str, ...] = ()
    backends: tuple[str, ...] | None = None

    @property
    def name(self) -> str:
        """Operation, shape and dtype."""
        return f"{self.operation} {self.shape} {dtype_name(self.dtype)}"

    def without_literal(self) -> "Case":
        """The same row without the literal form."""
        return replace(self, literal=False, compiled=False)

    def variants(self, device: torch.device) -> list[str]:
        """What the row times on a device, in the order of the table: backends, peers, the literal form."""
        kernels = kernels_for(device, self.dtype)
        wanted = (*KERNELS, FOLDED) if self.backends is None else self.backends
        backends = [name for name in wanted if name in kernels or name not in KERNELS]
        literal = [LITERAL] * self.literal + [COMPILED] * self.compiled
        return [*backends, *self.peers, *literal]


def dtype_name(dtype: torch.dtype) -> str:
    """ "bfloat16" for torch.bfloat16."""
    return str(dtype).removeprefix("torch.")


def kernels_for(device: torch.device, dtype: torch.dtype) -> list[str]:
    """Backends with kernels that take tensors of this dtype on this device, here and now."""
    # int8 passages are scored against float32 queries.
    wide = torch.float32 if dtype == torch.int8 else dtype
    # All of them serve pooling; rows of what one does not serve name their backends.
    return [name for name in KERNELS if unsupported(name, "attn_pool", device, wide) is None]


def identity(function: Function) -> Function:
    """The literal form as it is."""
    return function


def measure(
    case: Case, timer: Timer, ceilings: Ceilings, variants: list[str], done: Callable[[], object] = lambda: None
) -> dict[str, Any]:
    """The row of a case: every variant judged, then timed; ``done`` is called after each."""
    prepared = case.prepare(timer.device)
    row = empty_row(case, prepared, ceilings)
    for name in variants:
        row["variants"][name] = measure_variant(prepared, name, timer, row["floor_s"])
        done()
    compare(row, case.target)
    return row


def empty_row(case: Case, prepared: Prepared, ceilings: Ceilings) -> dict[str, Any]:
    """A row before anything is timed."""
    floor, bound = ceilings.floor(case.dtype, prepared.flops, prepared.traffic)
    return {
        "operation": case.operation,
        "shape": case.shape,
        "dtype": dtype_name(case.dtype),
        "flops": prepared.flops,
        "bytes": prepared.traffic,
        "floor_s": floor,
        "bound": bound,
        "literal_bytes": prepared.literal_bytes,
        "items": prepared.items,
        "facts": dict(prepared.facts),
        "target": {name: value for name, value in asdict(case.target).items() if value is not None},
        "variants": {},
    }


def measure_variant(
    prepared: Prepared, name: str, timer: Timer, floor: float, wrap: Wrap = torch.compile
) -> dict[str, Any]:
    """One variant of a row: figures, or why there are none. The literal form is the yardstick and is not judged."""
    found: dict[str, Any] = {}
    try:
        if name != LITERAL:
            verdict = _judge_compiled(prepared, wrap) if name == COMPILED else prepared.check(name)
            found |= {"error": verdict.error, "limit": verdict.limit}
            if not verdict.passed:
                return found | {"failure": f"wrong: {verdict}"}
        call = _call(prepared, name, wrap)
        found |= _figures(timer.sample(call.run), call.share, floor)
    except Exception as error:
        # One variant that does not fit or does not compile must not take the others with it.
        found["failure"] = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"[:300]
    if name == COMPILED:
        torch.compiler.reset()
    timer.free()
    return found


def _call(prepared: Prepared, name: str, wrap: Wrap) -> Call:
    if name in (LITERAL, COMPILED):
        return prepared.literal(wrap if name == COMPILED else identity)
    return prepared.peers[name]() if name in prepared.peers else prepared.kernel(name)


def _judge_compiled(prepared: Prepared, wrap: Wrap) -> Verdict:
    """Hold the compiled literal form against the eager one on the same random numbers."""
    outputs = []
    for each in (wrap, identity):
        torch.manual_seed(0)
        out = prepared.literal(each).run()
        outputs.append(out if isinstance(out, torch.Tensor) else out[0])  # type: ignore[index]
    # Of gradients the first alone: that of fc_k's bias is 0 but for rounding.
    got, expected = outputs
    return agreement(got, expected, expected.dtype)


def _figures(sample: Sample, share: float, floor: float) -> dict[str, Any]:
    seconds = sample.median_s / share
    return {
        "median_s": seconds,
        "low_s": sample.low_s / share,
        "high_s": sample.high_s / share,
        "p99_s": sample.p99_s / share,
        "spread": sample.spread,
        "runs": sample.runs,
        "host_s": sample.host_s,
        "peak_bytes": sample.peak_bytes,
        "share": share,
        "percent": 100 * floor / seconds,
    }


def compare(row: dict[str, Any], target: Target) -> None:
    """Fill in how many times as fast as each other variant a variant is, and which targets the kernels miss."""
    times = {name: found["median_s"] for name, found in row["variants"].items() if "median_s" in found}
    for name, seconds in times.items():
        variant = row["variants"][name]
        variant["ratios"] = {other: time / seconds for other, time in times.items() if other != name}
        if name in KERNELS:
            variant["missed"] = target.misses(variant["ratios"].get(LITERAL), variant["percent"], seconds)
