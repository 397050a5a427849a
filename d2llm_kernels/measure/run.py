"""A few rows at a user's own shapes, measured one after the other."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from d2llm_kernels.errors import ArgumentError
from d2llm_kernels.measure import ceilings, machine
from d2llm_kernels.measure.case import Case, measure
from d2llm_kernels.measure.in_batch import losses
from d2llm_kernels.measure.interaction import scores, topk
from d2llm_kernels.measure.pooling import pma, pooling
from d2llm_kernels.measure.timing import Timer

_KINDS = ("whole", "masked", "packed")


@dataclass(frozen=True)
class Shapes:
    """Sizes by their letters in the documents: B, L, D, H, F, Nq, Np, k, K, and how texts to pool are laid out.

    Raises:
        ArgumentError: for a size below 1, heads that do not divide the width, k above Np, or an unknown kind.
    """

    batch: int
    length: int
    dim: int
    heads: int
    hidden: int
    queries: int
    passages: int
    k: int
    hard: int
    kind: str

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, int) and value < 1:
                raise ArgumentError(f"{each.name}: expected at least 1, got {value}")
        if self.dim % self.heads:
            raise ArgumentError(f"heads: expected a divisor of dim ({self.dim}), got {self.heads}")
        if self.k > self.passages:
            raise ArgumentError(f"k: expected at most the number of passages, {self.passages}, got {self.k}")
        if self.kind not in _KINDS:
            raise ArgumentError(f"kind: expected one of {', '.join(_KINDS)}, got {self.kind!r}")


def chosen_cases(
    parts: Iterable[str], shapes: Shapes, dtype: torch.dtype, forward: bool, literal: bool, compiled: bool
) -> list[Case]:
    """The rows of some parts: "pool", "pma", "score", "topk" and "loss".

    Raises:
        ArgumentError: for an unknown part.
    """
    sizes = (shapes.batch, shapes.length, shapes.dim, shapes.heads)
    passes = ("f",) if forward else ("f", "b")
    pairs = (shapes.queries, shapes.passages, shapes.hidden)
    found: dict[str, Callable[[], list[Case]]] = {
        "pool": lambda: [pooling(each, dtype, sizes, shapes.kind, compiled=compiled) for each in passes],
        "pma": lambda: [pma("f" if forward else "fb", dtype, sizes, compiled=compiled)],
        "score": lambda: [scores(each, dtype, *pairs, shapes.dim, compiled=compiled) for each in passes],
        "topk": lambda: [topk(dtype, *pairs, shapes.k)],
        "loss": lambda: [losses(shapes.batch, shapes.hard)],
    }
    unknown = [part for part in parts if part not in found]
    if unknown:
        raise ArgumentError(f"parts: expected some of {', '.join(found)}, got {unknown[0]!r}")
    cases = [case for part in parts for case in found[part]()]
    return cases if literal else [case.without_literal() for case in cases]


def run(cases: Sequence[Case], timer: Timer, done: Callable[[], object]) -> dict[str, Any]:
    """A report of the rows; ``done`` is called after each of their variants."""
    rates = ceilings.measure(timer)
    torch.manual_seed(0)
    rows = [measure(case, timer, rates, case.variants(timer.device), done) for case in cases]
    return {
        "machine": machine.facts(timer.device),
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "ceilings": rates.as_json(),
        "rows": rows,
    }
