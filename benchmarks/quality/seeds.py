"""What the seed of a training decides: the shipped student and others of its recipe, beside their start."""

from collections.abc import Sequence

import numpy as np

from benchmarks.quality.asked import Asked
from benchmarks.quality.measured import WAYS, Measured, interval
from benchmarks.quality.sets import sets
from benchmarks.quality.trained import by_recipe, start

PART = "seeds"
SETS = ("docstrings", "everyday", "cosqa", "test")
SEEDS = 3
_START = "start"


def blocks(asked: Asked) -> dict[str, list[str]]:
    """Train and measure what is not there yet: a table of all sets."""
    measured, known = Measured(asked.work, PART), sets(asked.cosqa)
    students = {_seed(0): asked.student} | {_seed(n): by_recipe(asked.work, n) for n in range(1, SEEDS)}
    chosen = asked.chosen([name for name in SETS if name in known])
    for name in chosen:
        measured.measure(name, known[name](), {_START: start(asked.work), **students})
    lines = [
        "| set | start, cosine | cosine | IEM | hybrid | IEM over start | IEM over own cosine | hybrid over start |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *(row(measured, name, list(students)) for name in chosen),
    ]
    return {PART: lines}


def row(measured: Measured, data: str, seeds: Sequence[str]) -> str:
    """A set's line: the start's cosine, what each way to score comes to, and what IEM is over both cosines."""
    found = {way: np.stack([measured.known(data, f"{seed}, {way}") for seed in seeds]) for way in WAYS}
    start = measured.known(data, f"{_START}, cosine")
    cells = [data, f"{start.mean():.3f}"]
    for ranks in found.values():
        means = ranks.mean(1)
        cells.append(f"{means.mean():.3f} ± {means.std(ddof=1):.3f}")
    iem = found["IEM"].mean(0)
    cells += [interval(iem, start), interval(iem, found["cosine"].mean(0)), interval(found["hybrid"].mean(0), start)]
    return f"| {' | '.join(cells)} |"


def _seed(number: int) -> str:
    return f"seed {number}"
