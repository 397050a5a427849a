"""A process that tries inputs until it dies or hangs, which another one watches; then a new one goes on.

A case is a target's name and a number, from which the input follows, so that any can be seen again:
``python -m tests.torture.worker readers.examples 17``.
"""

import importlib
import multiprocessing
import os
import random
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.torture.tally import Tally

#: What an input may cost: seconds of the processor, and bytes beyond what the process holds when it begins.
SECONDS, BYTES = 5, 1 << 30
#: Seconds by the clock after which a process that does nothing hangs. Others may want the processor.
_ASLEEP = 60

#: Tries the input that follows from a random state in a folder: True if it was taken, False if it was refused as it
#: should be; any exception is a fault.
Try = Callable[[random.Random, Path], bool]


def run(shares: Mapping[str, float], seconds: float, seed: int) -> list[Tally]:
    """Try inputs of each target, ``module.name``, for its share of the time."""
    context = multiprocessing.get_context("forkserver")
    # Paid once: a worker that has died is replaced by a fork of one that has imported everything.
    context.set_forkserver_preload(sorted({f"tests.torture.{target.partition('.')[0]}" for target in shares}))
    unit = seconds / sum(shares.values())
    return [_run(context, target, share * unit, seed) for target, share in shares.items()]


def _run(context: Any, target: str, seconds: float, seed: int) -> Tally:
    tally, number, worker = Tally(target), seed << 32, _Worker(context, target)
    ends = time.time() + seconds
    while time.time() < ends:
        if worker.dead:
            worker = _Worker(context, target)
        verdict = worker.ask(number)
        tally.tried += 1
        tally.refused += verdict == "refused"
        if verdict not in ("taken", "refused"):
            tally.fault(f"{target} {number}: {verdict}")
        number += 1
    worker.end()
    return tally


class _Worker:
    def __init__(self, context: Any, target: str) -> None:
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(target, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self.dead = False
        # What is set up once takes longer than an input may.
        self._pipe.recv()

    def ask(self, number: int) -> str:
        used = self._used()
        self._pipe.send(number)
        try:
            for _ in range(0, _ASLEEP, SECONDS):
                if self._pipe.poll(SECONDS):
                    return str(self._pipe.recv())
                if self._used() - used > SECONDS:
                    return self._died(f"more than {SECONDS} s of the processor")
            return self._died(f"no answer within {_ASLEEP} s")
        except EOFError:
            return self._died("the process died")

    def _used(self) -> float:
        """Seconds of the processor that the process has had."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _died(self, verdict: str) -> str:
        self.end()
        return f"{verdict} (exit code {self._process.exitcode})"

    def end(self) -> None:
        self.dead = True
        self._process.kill()
        self._process.join()


def _serve(target: str, pipe: Connection) -> None:
    with tempfile.TemporaryDirectory() as folder:
        attempt = find(target)
        # A first one, so that what is set up once is there before the limit.
        judged(attempt, 0, Path(folder))
        held = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (held + BYTES, resource.RLIM_INFINITY))
        pipe.send("ready")
        while True:
            pipe.send(judged(attempt, pipe.recv(), Path(folder)))


def find(target: str) -> Try:
    """The function of a target."""
    module, _, name = target.partition(".")
    found: Try = importlib.import_module(f"tests.torture.{module}").TARGETS[name]
    return found


def judged(attempt: Try, number: int, folder: Path) -> str:
    """What came of an input: ``taken``, ``refused``, or the error that it should not have given."""
    try:
        return "taken" if attempt(random.Random(number), folder) else "refused"
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {error} ({where.filename}:{where.lineno}: {where.line})"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        print("taken" if find(sys.argv[1])(random.Random(int(sys.argv[2])), Path(place)) else "refused")
