"""Programs that the report starts: each ends with all that it has started itself, however that happens.

A child of a child that outlives it would keep the GPU busy beside the timings that follow.
"""

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Leaders of the groups that are running.
_running: set[int] = set()


def run(command: Sequence[str], seconds: float, log: Path, **environment: str) -> int | None:
    """Exit status of a command, or None if it was cut off after ``seconds``.

    Args:
        log: file that its output goes to as it comes.
        environment: variables to add.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    variables = os.environ | {"PYTHONUNBUFFERED": "1"} | environment
    with open(log, "wb") as out:
        child = subprocess.Popen(
            command, cwd=ROOT, env=variables, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    _running.add(child.pid)
    try:
        return child.wait(timeout=max(1.0, seconds))
    except subprocess.TimeoutExpired:
        return None
    finally:
        _end(child.pid)
        child.wait()
        _running.discard(child.pid)


def end() -> None:
    """End whatever runs, for a program that is about to end itself."""
    for leader in tuple(_running):
        _end(leader)


def _end(leader: int) -> None:
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        # It has ended, and nothing of its group is left.
        return
