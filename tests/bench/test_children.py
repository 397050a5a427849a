"""Programs that the GPU report starts: their output is kept, and nothing that they started outlives them."""

import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.gpu_report import children

# Starts a child of its own, says its number and waits for it.
PARENT = "import subprocess as s; c = s.Popen(['sleep', '600']); print(c.pid, flush=True); {end}"


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and was not collected does not."""
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pid: int) -> bool:
    return any(not alive(pid) or time.sleep(0.05) for _ in range(100))


def started(log: Path) -> int:
    while not log.exists() or not log.read_text().endswith("\n"):
        time.sleep(0.02)
    return int(log.read_text())


def test_a_child_that_is_cut_off_takes_its_own_children_along(tmp_path):
    log = tmp_path / "log"
    assert children.run([sys.executable, "-c", PARENT.format(end="c.wait()")], 2, log) is None
    assert gone(started(log))


def test_a_child_that_ends_leaves_none_behind_either(tmp_path):
    log = tmp_path / "folder/log"
    status = children.run([sys.executable, "-c", PARENT.format(end="raise SystemExit(7)")], 60, log, NAME="value")
    assert status == 7 and gone(started(log))


def test_a_program_that_ends_itself_ends_its_children(tmp_path):
    log = tmp_path / "log"
    code = (
        "import threading, sys, os; from pathlib import Path; from benchmarks.gpu_report import children\n"
        f"command = [sys.executable, '-c', {PARENT.format(end='c.wait()')!r}]\n"
        f"run = lambda: children.run(command, 60, Path({str(log)!r}))\n"
        "threading.Thread(target=run, daemon=True).start(); input(); children.end(); os._exit(0)"
    )
    environment = os.environ | {"PYTHONPATH": "."}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, env=environment, cwd=children.ROOT
    ) as own:
        child = started(log)
        assert alive(child)
        own.communicate(b"\n", timeout=60)
    assert gone(child)
