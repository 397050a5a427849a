"""What it costs a search to encode by linear layers in int8."""

from pathlib import Path

from benchmarks.quality.asked import Asked
from benchmarks.quality.measured import WAYS, Measured, interval
from benchmarks.quality.sets import sets
from d2llm.student import D2LLM

PART = "int8-encoder"
SETS = ("docstrings", "everyday", "everyday-documented", "cosqa")
_NAME = "student"


def blocks(asked: Asked) -> dict[str, list[str]]:
    """Measure what is not measured yet: one table of all sets."""
    known = sets(asked.cosqa)
    whole = Measured(asked.work, f"{PART}/float")
    # By its fingerprint it is the same student.
    rounded = Measured(asked.work / PART / "int8", PART, _rounded)
    lines = ["| set | by | float | int8 | difference, 95 % |", "| --- | --- | ---: | ---: | ---: |"]
    for name in asked.chosen([name for name in SETS if name in known]):
        data = known[name]()
        for measured in (whole, rounded):
            measured.measure(name, data, {_NAME: asked.student})
        lines += rows(whole, rounded, name)
    return {PART: lines}


def rows(whole: Measured, rounded: Measured, data: str) -> list[str]:
    """Lines of a set: the MRR of every way to score with embeddings in float and by int8, and their difference."""
    lines = []
    for way in WAYS:
        before, after = (each.ranks(data, f"{_NAME}, {way}") for each in (whole, rounded))
        assert before is not None and after is not None, f"{way} on {data} was not measured"
        lines.append(f"| {data} | {way} | {before.mean():.3f} | {after.mean():.3f} | {interval(after, before)} |")
    return lines


def _rounded(folder: Path) -> D2LLM:
    return D2LLM.from_pretrained(folder).quantize_encoder()
