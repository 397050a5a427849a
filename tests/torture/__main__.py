"""The campaign: python -m tests.torture --minutes M --seed S [PART...]."""

import argparse
import importlib
import os
import tempfile
import time
from pathlib import Path

PARTS = ("inputs", "kills", "disk", "flips", "beside")


def main() -> int:
    """Run the parts one after another, each for its share of the time; 1 if any finds a fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=f"some of {', '.join(PARTS)}; by default all")
    parser.add_argument("--minutes", type=float, default=10, help="time for all parts together")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    # What mutated files make the libraries say is not the campaign's.
    os.environ |= {
        "TRANSFORMERS_VERBOSITY": "critical",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYTHONWARNINGS": "ignore",
    }
    faults = 0
    for part in given.parts:
        began = time.time()
        with tempfile.TemporaryDirectory() as folder:
            module = importlib.import_module(f"tests.torture.{part}")
            tallies = module.run(60 * given.minutes / len(given.parts), given.seed, Path(folder))
        for tally in tallies:
            print(f"{tally.what}: {tally.tried} tried, {tally.refused} refused, {len(tally.faults)} faults", flush=True)
            for fault in tally.faults[:20]:
                print(f"  {fault}", flush=True)
            faults += len(tally.faults)
        print(f"  ({part}: {time.time() - began:.0f} s)", flush=True)
    return int(faults > 0)


if __name__ == "__main__":
    raise SystemExit(main())
