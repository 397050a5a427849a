"""Every table of docs/quality.md: ``python -m benchmarks.quality --cosqa FOLDER --sick FILE --trecqa FOLDER --write``.

All of it takes a night on two cores. What has been trained, judged and measured is kept in --work and not made again,
so that a run may be stopped and gone on with, and any parts may be asked for by name, or with --only some of their sets
or arms. What needs data that are not given is left as it was.
"""

import argparse
import sys
from pathlib import Path

from benchmarks.document import put
from benchmarks.quality import (
    choices,
    distillation,
    int8,
    labels,
    last_stage,
    price,
    rank_losses,
    seeds,
    sentence_pairs,
    shapes,
    students,
    teacher_curve,
    way,
)
from benchmarks.quality.asked import Asked
from d2llm.shipped import STUDENT

DOCUMENT = Path(__file__).parents[2] / "docs" / "quality.md"
PARTS = {
    part.PART: part
    for part in (
        students,
        last_stage,
        price,
        shapes,
        teacher_curve,
        distillation,
        choices,
        way,
        seeds,
        int8,
        sentence_pairs,
        labels,
        rank_losses,
    )
}


def main(arguments: list[str] | None = None) -> int:
    """Measure what is asked for, print the tables, and write them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help=f"some of {', '.join(PARTS)}; all by default")
    parser.add_argument("--only", nargs="+", default=[], help="sets or arms of these parts, to measure them alone")
    parser.add_argument("--work", type=Path, default=Path("runs/quality"), help="folder of what has been measured")
    parser.add_argument("--cosqa", type=Path, help="folder of CoSQA's codes.json and dev.json, which is not shipped")
    parser.add_argument("--sick", type=Path, help="SICK_train.txt, which is not shipped")
    parser.add_argument("--trecqa", type=Path, help="folder of TREC-QA's train.csv and dev.csv, which are not shipped")
    parser.add_argument("--student", type=Path, default=STUDENT, help="the student; the shipped one by default")
    parser.add_argument("--others", nargs="*", default=[], help="NAME=FOLDER of more for the tables of students")
    parser.add_argument("--tests", action="store_true", help="measure what the demonstration holds out too")
    parser.add_argument("--write", action="store_true", help="bring docs/quality.md up to it")
    given = parser.parse_args(arguments)
    if unknown := set(given.parts) - PARTS.keys():
        parser.error(f"parts: expected some of {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    others = {name: Path(folder) for name, folder in (each.split("=", 1) for each in given.others)}
    asked = Asked(
        given.work, given.cosqa, given.sick, given.trecqa, given.student, others, tuple(given.only), given.tests
    )
    for name in given.parts or PARTS:
        found = PARTS[name].blocks(asked)
        for block, lines in found.items():
            print(f"\n{block}", *lines, sep="\n", flush=True)
        if given.write:
            put(DOCUMENT, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
