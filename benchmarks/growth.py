"""How time and memory grow with tokens, batch and passages: exponents over two decades, held against the algebra's."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks import backend, corpus
from d2llm_kernels.measure.case import Case, Prepared
from d2llm_kernels.measure.contract import Verdict
from d2llm_kernels.measure.in_batch import losses
from d2llm_kernels.measure.interaction import scores, topk
from d2llm_kernels.measure.pooling import pooling
from d2llm_kernels.measure.timing import Timer

#: What noise, and leaving a cache for the next one, may add to an exponent.
SLACK_TIME, SLACK_MEMORY = 0.2, 0.05
_F = 512
_DTYPE = torch.float32


@dataclass(frozen=True)
class Sweep:
    """Sizes of one variable, and the exponents that the algebra gives.

    Args:
        operation, variable: what grows with what.
        sizes: from the smallest to a hundred times that.
        case: the row of a size.
        time, memory: exponents at most; memory is what the call holds, its results included.
    """

    operation: str
    variable: str
    sizes: Sequence[int]
    case: Callable[[int], Case]
    time: float
    memory: float


def sweeps() -> Iterator[Sweep]:
    """What is swept."""
    yield Sweep(
        "attn_pool forward, D=576 H=9, L=256", "B", (3, 10, 30, 100, 300),
        lambda size: pooling("f", _DTYPE, (size, 256, 576, 9)), 1, 1,
    )  # fmt: skip
    yield Sweep(
        "attn_pool backward, D=576 H=9, B=1", "T", (256, 800, 2560, 8000, 25600),
        lambda size: pooling("b", _DTYPE, (1, size, 576, 9)), 1, 1,
    )  # fmt: skip
    yield Sweep(
        "iem_scores forward, Nq=16", "Np", (300, 1000, 3000, 10_000, 30_000),
        lambda size: scores("f", _DTYPE, 16, size, _F, 576), 1, 1,
    )  # fmt: skip
    yield Sweep(
        "iem_scores backward, Nq=16", "Np", (100, 300, 1000, 3000, 10_000),
        lambda size: scores("b", _DTYPE, 16, size, _F, 576), 1, 1,
    )  # fmt: skip
    yield Sweep(
        "iem_topk, Nq=1 k=100", "Np", (3000, 10_000, 30_000, 100_000, 300_000),
        lambda size: topk(_DTYPE, 1, size, _F, 100), 1, 0,
    )  # fmt: skip
    yield Sweep(
        "in_batch_terms forward+backward, K=8", "B", (32, 100, 320, 1000, 3200),
        lambda size: losses(size, 8), 2, 2,
    )  # fmt: skip
    yield Sweep("encode, shipped student", "N", (1, 3, 10, 30, 100), _encode, 1, 1)
    yield Sweep("embed, shipped student, B=4", "L", (5, 16, 50, 160, 500), _embed, 2, 2)


def _encode(texts: int) -> Case:
    """Real passages of all lengths, from text to embedding."""
    passages = [pair.positive for pair in corpus.pairs()[:texts]]
    run = partial(corpus.student().encode, passages, dtype=_DTYPE, show_progress=False, convert_to="torch")
    return _program("encode", f"{texts} passages", run)


def _embed(length: int) -> Case:
    """Token ids of one length, through the LLM and its pooling."""
    student = corpus.student()
    ids = torch.randint(1000, 2000, (4, length), generator=torch.Generator().manual_seed(0))

    @torch.inference_mode()
    def run() -> torch.Tensor:
        return student.embed(ids, torch.ones_like(ids), backbone=student.inference.of(student.backbone, _DTYPE))

    return _program("embed", f"4 x {length} tokens", run)


def _program(operation: str, shape: str, run: Callable[[], Any]) -> Case:
    """A case whose growth alone is looked at."""

    def prepare(_: torch.device) -> Prepared:
        return Prepared(0, 0, backend.kernel(run), backend.literal(run), lambda _: Verdict(0, 0, "not compared"))

    return Case(operation, shape, _DTYPE, 1, prepare)


def measure(sweep: Sweep, name: str) -> dict[str, Any]:
    """Time and memory by a backend at every size, their exponents, and what grows faster than it should."""
    # Many runs, of which a fast one counts: a large result's memory is new to the machine in the first of them.
    timer = Timer(seconds=0.3, fewest=12, most=30)
    times, peaks = [], []
    for size in sweep.sizes:
        torch.manual_seed(0)
        call = sweep.case(size).prepare(timer.device).kernel(name).run
        sample = timer.sample(call)
        times.append(sample.low_s)
        peaks.append(sample.peak_bytes or 0)
    time, memory = exponent(sweep.sizes, times), exponent(sweep.sizes, peaks)
    faster = [
        f"{name} ~ {sweep.variable}^{found:.2f}, the algebra says {expected:g}"
        for name, found, expected, slack in (
            ("time", time, sweep.time, SLACK_TIME),
            ("memory", memory, sweep.memory, SLACK_MEMORY),
        )
        if found > expected + slack
    ]
    return {
        "operation": sweep.operation,
        "backend": name,
        "variable": sweep.variable,
        "sizes": list(sweep.sizes),
        "times_s": times,
        "peaks_bytes": peaks,
        "time": {"exponent": time, "expected": sweep.time},
        "memory": {"exponent": memory, "expected": sweep.memory},
        "faster": faster,
    }


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """e of the power law c · size^e that fits best in logarithms."""
    x = [math.log(size) for size in sizes]
    y = [math.log(max(value, 1e-12)) for value in values]
    middle, height = sum(x) / len(x), sum(y) / len(y)
    slope = sum((a - middle) * (b - height) for a, b in zip(x, y, strict=True))
    return slope / sum((a - middle) ** 2 for a in x)


def table(found: list[dict[str, Any]]) -> list[list[str]]:
    """Head and lines, one a sweep and backend."""
    lines = [
        ["operation", "dtype", "backend", "grows with", "from", "to", "time ~", "at most", "memory ~", "at most", ""]
    ]
    for sweep in found:
        letter = sweep["variable"]
        lines.append(
            [
                sweep["operation"],
                str(_DTYPE).removeprefix("torch."),
                sweep["backend"],
                letter,
                str(sweep["sizes"][0]),
                str(sweep["sizes"][-1]),
                f"{letter}^{sweep['time']['exponent']:.2f}",
                f"{letter}^{sweep['time']['expected']:g}",
                f"{letter}^{sweep['memory']['exponent']:.2f}",
                f"{letter}^{sweep['memory']['expected']:g}",
                "FASTER THAN THE ALGEBRA" if sweep["faster"] else "",
            ]
        )
    return lines
