"""What a run of the suite found, kept on disk as it grows so that a run that was stopped can go on."""

import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import cost, growth
from d2llm.files import atomic_path, read_json, write_json
from d2llm_kernels.measure import ceilings, machine, writing
from d2llm_kernels.measure.case import Case, Prepared, compare, empty_row, measure_variant
from d2llm_kernels.measure.timing import Timer

_NAME = "report.json"
_CPU = torch.device("cpu")


class Report:
    """A report in the making.

    Args:
        folder: where ``report.json`` and ``report.md`` lie.
        resume: go on with the report in ``folder``, if it was made on this machine with this revision.
    """

    def __init__(self, folder: Path, resume: bool) -> None:
        self.folder = folder
        self.values: dict[str, Any] = {
            "machine": machine.facts(_CPU),
            "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            "ceilings": None,
            "ceilings_after": None,
            "rows": [],
            "cost": [],
            "growth": [],
        }
        if resume and (folder / _NAME).is_file():
            found = read_json(folder / _NAME)
            if found["machine"] == self.values["machine"]:
                self.values = found
        self._case: Case | None = None
        self._prepared: Prepared | None = None

    def has(self, case: Case, variant: str) -> bool:
        """Whether a row has this variant already."""
        row = self._row(case)
        return row is not None and variant in row["variants"]

    def measure(self, case: Case, variant: str, timer: Timer) -> dict[str, Any]:
        """Judge and time a variant of a case, write the report, and return what was found."""
        if self._case is not case:
            # The tensors of the last case go before those of this one come.
            self._prepared = None
            torch.manual_seed(0)
            self._case, self._prepared = case, case.prepare(_CPU)
        assert self._prepared is not None
        row = self._row(case)
        if row is None:
            row = empty_row(case, self._prepared, self.ceilings())
            self.values["rows"].append(row)
        found = row["variants"][variant] = measure_variant(self._prepared, variant, timer, row["floor_s"])
        compare(row, case.target)
        self.write()
        return found

    def ceilings(self) -> ceilings.Ceilings:
        """This machine's rates, measured at first use."""
        if self.values["ceilings"] is None:
            self.values["ceilings"] = _rates().as_json()
        return ceilings.Ceilings(**self.values["ceilings"])

    def finish(self) -> None:
        """Measure the ceilings again, to tell whether the machine was the same all the time, and write."""
        if self.values["ceilings"] is not None:
            self._prepared = self._case = None
            self.values["ceilings_after"] = _rates().as_json()
        self.write()

    def write(self) -> None:
        """Write both files."""
        write_json(self.folder / _NAME, self.values)
        with atomic_path(self.folder / "report.md") as path:
            path.write_text(self.markdown(), encoding="utf-8")

    def markdown(self) -> str:
        """All of it to read."""
        lines = [f"# {self.values['machine']['device']}", "", writing.machine_line(self.values), ""]
        for sentence in self.notes():
            lines += [sentence, ""]
        for title, cells in self.tables().items():
            lines += [f"## {title}", "", *writing.markdown(cells), ""]
        return "\n".join([*lines, *(f"- {sentence}." for sentence in writing.LEGEND), ""])

    def text(self) -> str:
        """The tables for a terminal."""
        parts = [writing.machine_line(self.values), *self.notes()]
        for title, cells in self.tables().items():
            parts += ["", title, "", writing.aligned(cells)]
        return "\n".join([*parts, "", *writing.LEGEND])

    def notes(self) -> list[str]:
        """The ceilings, before and after."""
        first, last = self.values["ceilings"], self.values["ceilings_after"]
        found = [] if first is None else [writing.ceilings_line(first)]
        return found if last is None else [*found, f"At the end: {writing.ceilings_line(last)}"]

    def tables(self) -> dict[str, list[list[str]]]:
        """The tables that there is something for, by title."""
        found = {}
        if self.values["rows"]:
            found["Operations"] = writing.table(self.values["rows"], without=("host", "literal MB", "error"))
        if self.values["cost"]:
            found["What a query costs"] = cost.table(self.values["cost"])
        if self.values["growth"]:
            found["How cost grows"] = growth.table(self.values["growth"])
        return found

    def _row(self, case: Case) -> dict[str, Any] | None:
        rows = (row for row in self.values["rows"] if (row["operation"], row["shape"]) == (case.operation, case.shape))
        return next((row for row in rows if case.name.endswith(f" {row['dtype']}")), None)


def _rates() -> ceilings.Ceilings:
    return ceilings.measure(Timer(seconds=1.0, fewest=5, most=100))
