"""The table of counts in docs/reliability.md: a row for each thing that was tried, replaced when it is tried again."""

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

from d2llm.files import atomic_path
from tests.torture.tally import Tally

BEGIN, END = "<!-- torture: begin -->", "<!-- torture: end -->"
_HEAD = "| tried | times | refused | faults | seed | revision |\n|---|---|---|---|---|---|\n"


def revision() -> str:
    """The commit that is tried, and whether the tree differs from it."""
    run = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True)
    return run.stdout.strip() or "unknown"


def update(page: Path, tallies: Iterable[Tally], seed: int, commit: str, add: bool = False) -> None:
    """Put rows into the table of a page, in place of those of the same name, or with ``add`` on top of their counts.

    Raises:
        ValueError: if the page has no place for the table.
    """
    text = page.read_text(encoding="utf-8")
    before, found, rest = text.partition(BEGIN)
    table, closed, after = rest.partition(END)
    if not found or not closed:
        raise ValueError(f"{page}: expected {BEGIN} and {END}")
    lines = re.findall(r"^\|(.*)\|$", table, re.MULTILINE)[2:]
    rows = {cells[0]: cells for cells in ([cell.strip() for cell in line.split("|")] for line in lines)}
    for tally in tallies:
        counts = [tally.tried, tally.refused, len(tally.faults)]
        origin = [str(seed), commit]
        if add and tally.what in rows:
            _, *counted, seeds, commits = rows[tally.what]
            counts = [new + int(old.replace(",", "") or 0) for new, old in zip(counts, counted, strict=True)]
            origin = [_joined(seeds, origin[0]), _joined(commits, commit)]
        tried, refused, faults = (f"{count:,}" for count in counts)
        rows[tally.what] = [tally.what, tried, refused if counts[1] else "", faults, *origin]
    lines = [f"| {' | '.join(cells)} |" for cells in rows.values()]
    with atomic_path(page) as path:
        path.write_text(f"{before}{BEGIN}\n{_HEAD}{chr(10).join(lines)}\n{END}{after}", encoding="utf-8")


def _joined(listed: str, other: str) -> str:
    return listed if other in listed.split(", ") else f"{listed}, {other}"
