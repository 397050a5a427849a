"""A table of the ratios after the run; ``--benchmark-json FILE`` keeps the same figures."""

import platform

import pytest
import torch

ROWS = pytest.StashKey[list[dict[str, object]]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = []


@pytest.fixture(scope="session")
def table(request: pytest.FixtureRequest) -> list[dict[str, object]]:
    """Rows to print after the run."""
    return request.config.stash[ROWS]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash[ROWS]
    if not rows:
        return
    terminalreporter.section("rows")
    terminalreporter.write_line(f"torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} threads")
    for names in dict.fromkeys(tuple(row) for row in rows):
        alike = [row for row in rows if tuple(row) == names]
        widths = {name: max(len(name), *(len(str(row[name])) for row in alike)) for name in names}
        terminalreporter.write_line("")
        for line in ({name: name for name in names}, *alike):
            terminalreporter.write_line("  ".join(str(line[name]).rjust(widths[name]) for name in names))
