"""The campaign: python -m tests.torture --minutes M --seed S [PART...]."""

import argparse
import importlib
import os
import tempfile
import time
from pathlib import Path

from tests.torture.report import revision, update

PARTS = {
    "inputs": "mutated inputs for every reader and operator",
    "kills": "writers killed at any moment",
    "disk": "writers that find the disk full",
    "power": "writers whose power fails, in a simulation",
    "flips": "flipped bits of an index and of a student",
    "beside": "a reader beside a writer",
    "opens": "opens, as fast as they go, beside a writer that deletes",
}


def main() -> int:
    """Run the parts one after another, each for its share of the time; 1 if any finds a fault."""
    parts = "; ".join(f"{name}: {what}" for name, what in PARTS.items())
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART", help=f"{parts}; by default all")
    parser.add_argument("--minutes", type=float, default=10, help="time for all parts together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the counts into the table of a page")
    parser.add_argument("--add", action="store_true", help="add to the counts that are there, in place of new rows")
    given = parser.parse_args()
    # What mutated files make the libraries say is not the campaign's.
    os.environ |= {
        "TRANSFORMERS_VERBOSITY": "critical",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYTHONWARNINGS": "ignore",
    }
    commit, faults = revision(), 0
    for part in given.parts or PARTS:
        began = time.time()
        with tempfile.TemporaryDirectory() as folder:
            module = importlib.import_module(f"tests.torture.{part}")
            tallies = module.run(60 * given.minutes / len(given.parts or PARTS), given.seed, Path(folder))
        for tally in tallies:
            print(f"{tally.what}: {tally.tried} tried, {tally.refused} refused, {len(tally.faults)} faults", flush=True)
            for fault in tally.faults[:20]:
                print(f"  {fault}", flush=True)
            faults += len(tally.faults)
        print(f"  ({part}: {time.time() - began:.0f} s, seed {given.seed}, revision {commit})", flush=True)
        if given.write:
            update(given.write, tallies, given.seed, commit, given.add)
    return int(faults > 0)


if __name__ == "__main__":
    raise SystemExit(main())
