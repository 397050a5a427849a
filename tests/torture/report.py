"""The table of counts in docs/reliability.md: a row for each thing that was tried, replaced when it is tried again."""

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

from tests.torture.tally import Tally

BEGIN, END = "<!-- torture: begin -->", "<!-- torture: end -->"
_HEAD = "| tried | times | refused | faults | seed | revision |\n|---|---|---|---|---|---|\n"


def revision() -> str:
    """The commit that is tried, and whether the tree differs from it."""
    run = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True)
    return run.stdout.strip() or "unknown"


def update(page: Path, tallies: Iterable[Tally], seed: int, commit: str) -> None:
    """Put rows into the table of a page, in place of those of the same name.

    Raises:
        ValueError: if the page has no place for the table.
    """
    text = page.read_text(encoding="utf-8")
    before, found, rest = text.partition(BEGIN)
    table, closed, after = rest.partition(END)
    if not found or not closed:
        raise ValueError(f"{page}: expected {BEGIN} and {END}")
    rows = {row.split("|")[1].strip(): row for row in re.findall(r"^\|.*\|$", table, re.MULTILINE)[2:]}
    for tally in tallies:
        refused = f"{tally.refused:,}" if tally.refused else ""
        cells = (tally.what, f"{tally.tried:,}", refused, str(len(tally.faults)), str(seed), commit)
        rows[tally.what] = f"| {' | '.join(cells)} |"
    page.write_text(f"{before}{BEGIN}\n{_HEAD}{chr(10).join(rows.values())}\n{END}{after}", encoding="utf-8")
