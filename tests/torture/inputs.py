"""Mutated inputs for every reader and every operator."""

import os
from pathlib import Path

from tests.torture import folders, operators, readers, worker
from tests.torture.tally import Tally


def run(seconds: float, seed: int, folder: Path) -> list[Tally]:
    """Try each target for its share of the time."""
    # Made once for all workers.
    os.environ["TORTURE_STUDENT"] = str(folder)
    parts = {"readers": readers, "folders": folders, "operators": operators}
    return worker.run([f"{part}.{name}" for part, module in parts.items() for name in module.TARGETS], seconds, seed)
