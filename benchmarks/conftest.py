"""The suite's wiring into pytest-benchmark: one test for each variant of each row, and one table at the end.

A test module names its rows in ``cases(full)``; the tests of a row follow each other, so that its tensors are made
once. ``--benchmark-json FILE`` keeps pytest-benchmark's own record beside the report.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.report import Report
from d2llm_kernels.measure.case import Case
from d2llm_kernels.measure.timing import Function, Timer

REPORT = pytest.StashKey[Report]()
_CPU = torch.device("cpu")
_FEWEST, _MOST = 3, 100
_ORDER = ("pooling", "interaction", "in_batch", "lora", "training", "encode", "index", "growth", "cost")


class BenchmarkTimer(Timer):
    """Times by pytest-benchmark's rounds."""

    def __init__(self, benchmark: Any, seconds: float) -> None:
        super().__init__(seconds, _FEWEST, _MOST)
        self._benchmark = benchmark

    def series(self, call: Function, runs: int, host: float) -> list[float]:
        self._benchmark.pedantic(call, rounds=runs)
        return list(self._benchmark.stats.stats.data)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("d2llm")
    group.addoption(
        "--full", action="store_true", help="every shape, in three quarters of an hour; without it a selection"
    )
    group.addoption("--out", type=Path, help="folder of the report (default: .benchmarks/last)")
    group.addoption("--resume", action="store_true", help="go on with the report that is there")
    group.addoption("--seconds", type=float, default=0.5, help="time for the runs of one variant (default: 0.5)")


def pytest_configure(config: pytest.Config) -> None:
    folder = config.getoption("--out") or config.rootpath / ".benchmarks" / "last"
    config.stash[REPORT] = Report(folder, config.getoption("--resume"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Operations before whole programs; last what fills the memory.
    items.sort(key=lambda item: _ORDER.index(item.path.stem.removeprefix("test_")))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "variant" not in metafunc.fixturenames:
        return
    cases: list[Case] = list(metafunc.module.cases(metafunc.config.getoption("--full")))
    report = metafunc.config.stash[REPORT]
    rows = [(case, name) for case in cases for name in case.variants(_CPU) if not report.has(case, name)]
    metafunc.parametrize(("case", "variant"), rows, ids=[f"{case.name}, {name}" for case, name in rows])


@pytest.fixture(scope="session")
def report(request: pytest.FixtureRequest) -> Report:
    """What this run finds."""
    return request.config.stash[REPORT]


@pytest.fixture
def outcome(benchmark: Any, request: pytest.FixtureRequest, report: Report, case: Case, variant: str) -> dict[str, Any]:
    """What was found of a variant; with "failure" where it is wrong or does not run."""
    benchmark.group = case.name
    found = report.measure(case, variant, BenchmarkTimer(benchmark, request.config.getoption("--seconds")))
    benchmark.extra_info.update(found)
    return found


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["d2llm"] = config.stash[REPORT].values["machine"]


def pytest_sessionfinish(session: pytest.Session) -> None:
    report = session.config.stash[REPORT]
    if any(report.tables()):
        report.finish()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    report = config.stash[REPORT]
    if any(report.tables()):
        terminalreporter.section("report")
        terminalreporter.write_line(report.text())
        terminalreporter.write_line(f"\nwritten to {report.folder}")
