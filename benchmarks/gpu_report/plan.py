"""The steps of a report, in the order of what is most worth knowing.

Stage 1 says whether the kernels run and are right, stage 2 how fast they are, stage 3 what else could be had: each fits
a call of under ten minutes.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.gpu_report import build, end_to_end, experimental, l2, launches, parity, tiles
from benchmarks.gpu_report.rows import cases
from benchmarks.gpu_report.state import Values
from d2llm_kernels.measure import ceilings
from d2llm_kernels.measure.case import COMPILED, Case, compare, dtype_name, measure, measure_variant
from d2llm_kernels.measure.timing import Timer

STAGES = (1, 2, 3)
# Share of a call that the tests, and each sanitizer, may take.
_TESTS_SHARE, _SANITIZER_SHARE = 0.7, 0.2


class Step(NamedTuple):
    """Part of a report.

    Args:
        name, run: what it does; what it finds goes into the report's values.
        stage: the call that it belongs to; 0 for every call.
        priority: lower ones first within a stage.
        seconds: about what it takes.
        limit: seconds after which it will not come back any more.
    """

    name: str
    run: Callable[[], None]
    stage: int
    priority: float
    seconds: float
    limit: float = 120.0


class Plan:
    """Makes the steps.

    Args:
        values: the report, which the steps fill.
        folder: where files go. seconds: time for the whole call. smoke: tiny sizes.
        only: only rows whose name contains this, and what they need.
    """

    def __init__(self, values: Values, timer: Timer, folder: Path, seconds: float, smoke: bool, only: str) -> None:
        self.values, self.timer, self.folder, self.smoke, self.only = values, timer, folder, smoke, only
        self.seconds, self.deadline = seconds, time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds left."""
        return self.deadline - time.monotonic()

    def groundwork(self) -> list[Step]:
        """What decides which other steps there are."""
        return [Step("build", self._build, 0, 0, 0, limit=self.seconds)]

    def steps(self, stage: int | None) -> list[Step]:
        """Those of a stage, or of all, once the groundwork is done."""
        found = [Step("ceilings", self._ceilings, 0, 0, 5), *self._rows()]
        if not self.only:
            found += [*self._first(), *self._end_to_end(), *self._last()]
        chosen = [step for step in found if stage is None or step.stage in (0, stage)]
        return sorted(chosen, key=lambda step: (step.stage, step.priority))

    def _first(self) -> Iterator[Step]:
        for launch in launches.launches(self.timer.device):
            yield Step(f"launch of {launch.name}", partial(self._launch, launch), 1, 0, 3)
        yield Step("L2", self._l2, 1, 1, 5)
        yield Step("parity tests", self._tests, 1, 2, 20, limit=self.seconds)

    def _rows(self) -> Iterator[Step]:
        for case in cases(self.smoke):
            if self.only not in case.name:
                continue
            yield Step(case.name, partial(self._row, case), 2, case.priority, 5)
            for name in experimental.variants(case, self.timer.device):
                yield Step(f"{case.name}, {name}", partial(self._experimental, case, name), 2, case.priority + 0.1, 5)
            if case.compiled:
                yield Step(f"{case.name}, {COMPILED}", partial(self._compiled, case), 2, case.priority + 0.9, 30)

    def _end_to_end(self) -> Iterator[Step]:
        yield Step("end to end", self._whole, 2, 1.5, 30, limit=180)

    def _last(self) -> Iterator[Step]:
        for tool in parity.SANITIZERS:
            yield Step(tool, partial(self._sanitize, tool), 3, 0, 20, limit=self.seconds)
        rows = list(tiles.rows(self.smoke))
        for row in rows:
            if row.kernel == "pool_forward":
                yield Step(f"lags of {row.name}", partial(self._lags, row), 3, 1, 5)
        for number, row in enumerate(rows):
            yield Step(f"tiles of {row.name}", partial(self._tiles, row), 3, 2 + number, 10, limit=180)

    def _build(self) -> None:
        self.values["build"] = "failed"
        self.values["build"] = build.build(self.folder, 0.6 * self.left)

    def _ceilings(self) -> None:
        copied, size = (1 << 20, 64) if self.smoke else (2 << 30, 8192)
        self.values["ceilings"] = ceilings.measure(self.timer, copied, size).as_json()

    def _l2(self) -> None:
        self.values["l2"] = l2.measure(self.timer, self.smoke)

    def _launch(self, launch: launches.Launch) -> None:
        right, line = launches.say(launch)
        self.values["launches"][launch.name] = {"right": right, "line": line}
        print(f"          {line}", flush=True)

    def _tests(self) -> None:
        paths = ["--noconftest", "tests/test_files.py"] if self.smoke else ["tests/gpu"]
        seconds, log = min(self.left - 10, _TESTS_SHARE * self.seconds), self.folder / "parity.txt"
        self.values["tests"] = parity.tests(paths, seconds, self.timer.device.type == "cuda", log)
        _came_to_an_end(self.values["tests"])

    def _sanitize(self, tool: str) -> None:
        seconds = min(self.left - 10, _SANITIZER_SHARE * self.seconds)
        found = self.values["sanitizers"][tool] = parity.sanitize(tool, seconds, self.folder / f"{tool}.txt")
        _came_to_an_end(found)

    def _row(self, case: Case) -> None:
        variants = [name for name in case.variants(self.timer.device) if name != COMPILED]
        row = measure(case, self.timer, ceilings.Ceilings(**self.values["ceilings"]), variants)
        self.values["rows"] = [old for old in self.values["rows"] if _key(old) != _key(row)] + [row]
        for name, found in row["variants"].items():
            said = (
                found.get("failure") or f"{found['median_s'] * 1e3:.4g} ms, {found['percent']:.0f} % of {row['bound']}"
            )
            print(f"          {name}: {said}", flush=True)

    def _row_of(self, case: Case) -> dict[str, Any]:
        key = (case.operation, case.shape, dtype_name(case.dtype))
        found: dict[str, Any] | None = next((row for row in self.values["rows"] if _key(row) == key), None)
        if found is None:
            raise RuntimeError("there is no row to add it to")
        return found

    def _experimental(self, case: Case, name: str) -> None:
        row = self._row_of(case)
        row["variants"][name] = experimental.measure(case, name, self.timer, row["floor_s"])
        compare(row, case.target)

    def _compiled(self, case: Case) -> None:
        row = self._row_of(case)
        # Inductor builds C++ on a CPU, which takes longer than all the rest of a smoke run.
        wrap = partial(torch.compile, backend="eager") if self.smoke else torch.compile
        prepared = case.prepare(self.timer.device)
        row["variants"][COMPILED] = measure_variant(prepared, COMPILED, self.timer, row["floor_s"], wrap)
        compare(row, case.target)

    def _whole(self) -> None:
        size = end_to_end.SMOKE if self.smoke else end_to_end.FULL
        self.values["end_to_end"] = end_to_end.measure(self.timer, size)

    def _lags(self, row: tiles.tune.Row) -> None:
        self.values["lags"][row.name] = tiles.lags(row, self.timer, self.smoke)

    def _tiles(self, row: tiles.tune.Row) -> None:
        self.values["tiles"][row.name] = tiles.advance(row, self.timer, self.folder, self.deadline, self.smoke)


def _came_to_an_end(found: dict[str, Any]) -> None:
    if found["outcome"] == parity.CUT_OFF:
        raise TimeoutError(found["summary"])


def _key(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["operation"], row["shape"], row["dtype"]
