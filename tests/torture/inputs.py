"""Mutated inputs for every reader and every operator."""

import os
from pathlib import Path

from tests.torture import folders, operators, readers, requests, teachers, worker
from tests.torture.tally import Tally

#: Shares of the time: an operator takes microseconds, and a student or a teacher to load a tenth of a second.
_SHARES = {readers: 4, folders: 4, teachers: 4, operators: 1, requests: 8}


def run(seconds: float, seed: int, folder: Path) -> list[Tally]:
    """Try each target for its share of the time."""
    # Made once for all workers.
    os.environ["TORTURE_STUDENT"] = str(folder)
    shares = {
        f"{module.__name__.rpartition('.')[2]}.{name}": share
        for module, share in _SHARES.items()
        for name in module.TARGETS
    }
    return worker.run(shares, seconds, seed)
