"""Bring docs/benchmarks.md up to a report: its tables between their marks, and the pictures beside it.

python -m benchmarks.document benchmarks/results/cpu-…/report.json
"""

import argparse
import re
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import cost, growth
from benchmarks.plots import draw
from d2llm.files import atomic_path, read_json
from d2llm_kernels.backends import KERNELS
from d2llm_kernels.measure import writing
from d2llm_kernels.measure.machine import facts

DOCUMENT = Path(__file__).parents[1] / "docs" / "benchmarks.md"
_COLUMNS = ("operation", "shape", "dtype", "time", "+-", "x reference", "x folded", "% of limit", "peak MB", "rate")


def blocks(report: dict[str, Any]) -> dict[str, list[str]]:
    """The lines that belong between the marks of each name."""
    after = report["ceilings_after"]
    return {
        "machine": [
            writing.machine_line(report),
            "",
            writing.ceilings_line(report["ceilings"]),
            *([f"At the end of the run: {writing.ceilings_line(after)}"] if after else []),
        ],
        "kernels": writing.markdown(writing.table([_kernels_of(row) for row in report["rows"]], _COLUMNS)),
        "cost": writing.markdown(cost.table(report["cost"])),
        "growth": writing.markdown(growth.table(report["growth"])),
        "legend": [f"- {sentence}." for sentence in writing.LEGEND],
    }


def replaced(text: str, found: dict[str, list[str]], document: str) -> str:
    """A document with other lines between the marks of each name.

    Raises:
        ValueError: where a name's marks are missing, or there twice.
    """
    for name, lines in found.items():
        mark = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        body = "\n".join(lines)
        text, count = mark.subn(lambda match, body=body: f"{match[1]}{body}\n{match[2]}", text)
        if count != 1:
            raise ValueError(f"{document}: expected the marks of {name!r} once, found them {count} times")
    return text


def put(document: Path, found: dict[str, list[str]]) -> None:
    """Write a document anew with other lines between the marks of each name.

    Raises:
        ValueError: as :func:`replaced`.
    """
    text = replaced(document.read_text(encoding="utf-8"), found, document.name)
    with atomic_path(document) as path:
        path.write_text(text, encoding="utf-8")


def write_table(name: str, cells: list[list[str]], document: Path = DOCUMENT) -> None:
    """Put a table of a run that ends now, below the machine it ran on, between the marks of its name."""
    run = {"machine": facts(torch.device("cpu")), "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())}
    put(document, {name: [writing.machine_line(run), "", *writing.markdown(cells)]})


def _kernels_of(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"variants": {name: found for name, found in row["variants"].items() if name in KERNELS}}


def main(arguments: list[str] | None = None) -> int:
    """Run the program."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.document", description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path, help="report.json")
    report = read_json(parser.parse_args(arguments).report)
    put(DOCUMENT, blocks(report))
    for path in (DOCUMENT, *draw(report, DOCUMENT.with_suffix(""))):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
