"""How well students search on every set, beside BM25 and what they started as."""

from benchmarks.quality.asked import Asked
from benchmarks.quality.measured import LEXICAL, WAYS, Measured, table
from benchmarks.quality.sets import sets
from benchmarks.quality.trained import start

PART = "students"


def blocks(asked: Asked) -> dict[str, list[str]]:
    """Measure what is not measured yet; a table of every set that is, whoever asked for it."""
    measured, known = Measured(asked.work, PART), sets(asked.cosqa)
    students = {"MiniLM": start(asked.work), "shipped": asked.student, **asked.others}
    for name in asked.chosen(known):
        measured.measure(name, known[name](), students)
    systems = [*(f"{each}, {way}" for each in students for way in WAYS), LEXICAL]
    return {name: table(measured, name, systems) for name in known if measured.ranks(name, LEXICAL) is not None}
