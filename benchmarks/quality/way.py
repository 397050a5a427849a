"""How much of its way from the start a student had better keep: one by the recipe, drawn back to several shares of it.

In float32, so that nothing but the share differs; the shipped student, at one of them, is in eight bits.
"""

from benchmarks.quality.asked import Asked
from benchmarks.quality.measured import IEM, WAYS, Measured, interval
from benchmarks.quality.sets import sets
from benchmarks.quality.trained import drawn_back, start

PART = "way"
SETS = ("docstrings", "everyday", "everyday-documented", "cosqa")
SHARES = (0.25, 0.5, 0.75, 1.0)
_START = "0%"


def blocks(asked: Asked) -> dict[str, list[str]]:
    """Train and measure what is not there yet: a table of every set that was measured."""
    measured, known = Measured(asked.work, PART), sets(asked.cosqa)
    students = {_START: start(asked.work)} | {f"{share:.0%}": drawn_back(asked.work, share) for share in SHARES}
    chosen = asked.chosen([name for name in SETS if name in known])
    for name in chosen:
        measured.measure(name, known[name](), students)
    lines = ["| set | share of the way | cosine | IEM | hybrid | IEM over the start, 95 % |"]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: |")
    return {PART: lines + [row(measured, name, share) for name in chosen for share in students]}


def row(measured: Measured, data: str, share: str) -> str:
    """A share's line: its MRR by every way to score, and what IEM is over the start's."""
    found = [measured.known(data, f"{share}, {way}") for way in WAYS]
    over = interval(found[WAYS.index(IEM)], measured.known(data, f"{_START}, {IEM}")) if share != _START else ""
    return f"| {data} | {share} | {' | '.join(f'{ranks.mean():.3f}' for ranks in found)} | {over} |"
