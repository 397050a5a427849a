"""Test and time every kernel on the GPU at hand, and write what was found.

    make gpu-report                          # all, in eight minutes at most
    make gpu-report ARGS='--only iem_topk'   # rows whose name contains this
    python -m benchmarks.gpu_report --smoke  # tiny sizes on the CPU, with TRITON_INTERPRET=1

Steps run in order of priority until time is up; the files are written after each one.
"""

import argparse
import os
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.gpu_report import end_to_end, experimental, parity, writing
from benchmarks.gpu_report.rows import cases
from d2llm.bench import ceilings, machine
from d2llm.bench.case import COMPILED, Case, compare, dtype_name, kernels_for, measure, measure_variant
from d2llm.bench.timing import GpuTimer, Timer
from d2llm_kernels.backends import interpreted

_FOLDER = parity.ROOT / "benchmarks" / "results"
# After its time the program waits this long for the step in hand, then ends: a kernel that hangs would never return.
_GRACE_S = 40.0
# Share of the time that the parity tests may take.
_TESTS_SHARE = 0.4


class Step(NamedTuple):
    """Part of a report; lower priorities first. ``seconds`` is about what it takes, at most."""

    name: str
    priority: float
    seconds: float
    run: Callable[[], None]


class Report:
    """A report in the making."""

    def __init__(self, timer: Timer, folder: Path | None, minutes: float, smoke: bool, only: str) -> None:
        self.timer, self.smoke, self.only = timer, smoke, only
        self.start, self.seconds = time.monotonic(), 60 * minutes
        could_not_run = parity.build()
        self.values: dict[str, Any] = {
            "machine": machine.facts(timer.device),
            "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            "smoke": smoke,
            "seconds": 0.0,
            "tests": None,
            "sanitizers": {},
            "ceilings": None,
            "rows": [],
            "end_to_end": [],
            "could_not_run": could_not_run,
            "dropped": [],
        }
        self.folder = folder or _FOLDER / machine.slug(self.values["machine"])
        self.ceilings: ceilings.Ceilings | None = None

    @property
    def left(self) -> float:
        """Seconds left."""
        return self.seconds - (time.monotonic() - self.start)

    def run(self) -> None:
        """Take every step that there is time for."""
        steps = sorted(self._steps(), key=lambda step: step.priority)
        if not kernels_for(self.timer.device, torch.float32):
            self.values["could_not_run"].append("no backend with kernels is available: only plain torch is timed")
        for number, step in enumerate(steps):
            if self.left < step.seconds:
                self.values["dropped"].append(step.name)
                continue
            print(f"[{time.monotonic() - self.start:5.0f} s] {step.name}", flush=True)
            try:
                step.run()
            except Exception as error:
                self.values["could_not_run"].append(f"{step.name}: {type(error).__name__}: {error}"[:500])
            lost = self._lost()
            if lost:
                self.values["could_not_run"].append(f"everything after {step.name}: the GPU answers no more ({lost})")
                self.values["dropped"] += [later.name for later in steps[number + 1 :]]
                break
            self.write()
        self.write()

    def write(self) -> None:
        """Write the files as far as they are."""
        self.values["seconds"] = time.monotonic() - self.start
        writing.write(self.values, self.folder)

    def watch(self) -> threading.Timer:
        """A timer that ends the program where a step does not come back."""

        def give_up() -> None:
            print("a step did not come back in time; what was found before it is written", flush=True)
            print(writing.short(self.values), flush=True)
            os._exit(3)

        watchdog = threading.Timer(self.left + _GRACE_S, give_up)
        watchdog.daemon = True
        watchdog.start()
        return watchdog

    def _steps(self) -> list[Step]:
        steps = [Step("ceilings", -1, 0, self._ceilings)]
        if not self.only:
            paths = ["--noconftest", "tests/test_files.py"] if self.smoke else ["tests/gpu"]
            steps.append(Step("parity tests", 0, 20, partial(self._tests, paths)))
            for tool in parity.SANITIZERS if self.timer.device.type == "cuda" else ():
                steps.append(Step(tool, 2.5, 60, partial(self._sanitize, tool)))
            size = end_to_end.SMOKE if self.smoke else end_to_end.FULL
            steps.append(Step("end to end", 1.5, 30, partial(self._end_to_end, size)))
        for case in cases(self.smoke):
            if self.only not in case.name:
                continue
            steps.append(Step(case.name, case.priority, 5, partial(self._row, case)))
            steps += [
                Step(f"{case.name}, {name}", case.priority + 0.1, 5, partial(self._experimental, case, name))
                for name in experimental.variants(case, self.timer.device)
            ]
            if case.compiled:
                steps.append(Step(f"{case.name}, {COMPILED}", case.priority + 0.9, 30, partial(self._compiled, case)))
        return steps

    def _ceilings(self) -> None:
        copied, size = (1 << 20, 64) if self.smoke else (2 << 30, 8192)
        self.ceilings = ceilings.measure(self.timer, copied, size)
        self.values["ceilings"] = self.ceilings.as_json()

    def _tests(self, paths: list[str]) -> None:
        self.values["tests"] = parity.tests(paths, _TESTS_SHARE * self.seconds, self.timer.device.type == "cuda")

    def _sanitize(self, tool: str) -> None:
        self.values["sanitizers"][tool] = parity.sanitize(tool, _TESTS_SHARE * self.seconds / 2)

    def _row(self, case: Case) -> None:
        if self.ceilings is None:
            raise RuntimeError("without ceilings there is nothing to hold it against")
        variants = [name for name in case.variants(self.timer.device) if name != COMPILED]
        row = measure(case, self.timer, self.ceilings, variants)
        self.values["rows"].append(row)
        for name, found in row["variants"].items():
            said = (
                found.get("failure") or f"{found['median_s'] * 1e3:.4g} ms, {found['percent']:.0f} % of {row['bound']}"
            )
            print(f"          {name}: {said}", flush=True)

    def _rows_of(self, case: Case) -> list[dict[str, Any]]:
        key = (case.operation, case.shape, dtype_name(case.dtype))
        return [row for row in self.values["rows"] if (row["operation"], row["shape"], row["dtype"]) == key]

    def _experimental(self, case: Case, name: str) -> None:
        for row in self._rows_of(case):
            row["variants"][name] = experimental.measure(case, name, self.timer, row["floor_s"])
            compare(row, case.target)

    def _compiled(self, case: Case) -> None:
        for row in self._rows_of(case):
            # Inductor builds C++ on a CPU, which takes longer than all the rest of a smoke run.
            wrap = partial(torch.compile, backend="eager") if self.smoke else torch.compile
            prepared = case.prepare(self.timer.device)
            row["variants"][COMPILED] = measure_variant(prepared, COMPILED, self.timer, row["floor_s"], wrap)
            compare(row, case.target)

    def _end_to_end(self, size: end_to_end.Size) -> None:
        self.values["end_to_end"] = end_to_end.measure(self.timer, size)

    def _lost(self) -> str | None:
        """Why the GPU cannot be used any more after a failed kernel, or None."""
        try:
            self.timer.free()
        except Exception as error:
            return f"{type(error).__name__}: {error}".splitlines()[0]
        return None


def main(arguments: list[str] | None = None) -> int:
    """Run the program; 0 if the tests and every check passed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_report", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8.0, help="time for everything (default: 8)")
    parser.add_argument("--only", default="", help="only rows whose name contains this, without the tests")
    parser.add_argument("--out", type=Path, help="folder to write to (default: benchmarks/results/<GPU>)")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes on the CPU; needs TRITON_INTERPRET=1")
    options = parser.parse_args(arguments)
    if options.smoke != interpreted():
        parser.error("--smoke and TRITON_INTERPRET=1 go together: timing the interpreter says nothing")
    if not options.smoke and not torch.cuda.is_available():
        parser.error("torch sees no GPU")
    timer = Timer(fewest=1, most=1) if options.smoke else GpuTimer()
    report = Report(timer, options.out, options.minutes, options.smoke, options.only)
    watchdog = report.watch()
    report.run()
    watchdog.cancel()
    print(writing.short(report.values))
    for title in ("could_not_run", "dropped"):
        for line in report.values[title]:
            print(f"{title.replace('_', ' ')}: {line}")
    tests = report.values["tests"]
    for name, found in {"tests": tests, **report.values["sanitizers"]}.items():
        if found:
            print(f"{name}: {found['outcome']}, {found['summary']}")
    print(f"written to {report.folder}")
    variants = [found for row in report.values["rows"] for found in row["variants"].values()]
    wrong = any(found.get("failure", "").startswith("wrong") for found in variants)
    checks = (tests or {}, *report.values["sanitizers"].values())
    return int(wrong or any(check.get("outcome") == "failed" for check in checks))


if __name__ == "__main__":
    sys.exit(main())
