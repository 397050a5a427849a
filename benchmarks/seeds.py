"""What the seed of a training decides: students of one recipe and several seeds, a table in docs/quality.md.

    python -m benchmarks.seeds --student SHIPPED runs/1/student runs/2/student --start runs/1/start --write

``python -m d2llm.demo.encoder runs/1 --seed 1`` makes such a student, and runs/1/start is what all of them started as,
whose cosine is their encoder's own.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.document import put
from benchmarks.quality import DOCUMENT, TESTS, Measured, interval, sets

_START = "start"
_KINDS = ("cosine", "IEM", "hybrid")


def row(measured: Measured, data: str, seeds: Sequence[str]) -> str:
    """A set's line: the start's cosine, what each way to score comes to, and what IEM is over both cosines."""
    found = {kind: np.stack([_ranks(measured, data, f"{seed}, {kind}") for seed in seeds]) for kind in _KINDS}
    start = _ranks(measured, data, f"{_START}, cosine")
    cells = [data, f"{start.mean():.3f}"]
    for ranks in found.values():
        means = ranks.mean(1)
        cells.append(f"{means.mean():.3f} ± {means.std(ddof=1):.3f}")
    iem = found["IEM"].mean(0)
    cells += [interval(iem, start), interval(iem, found["cosine"].mean(0)), interval(found["hybrid"].mean(0), start)]
    return f"| {' | '.join(cells)} |"


def _ranks(measured: Measured, data: str, system: str) -> np.ndarray:
    ranks = measured.ranks(data, system)
    assert ranks is not None, f"{system} on {data} was not measured"
    return ranks


def main(arguments: list[str] | None = None) -> int:
    """Measure what is not measured yet, and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.seeds", description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/seeds"), help="folder of what has been measured")
    parser.add_argument("--student", nargs="+", required=True, help="a student's folder for every seed, two or more")
    parser.add_argument("--start", required=True, help="folder of what they started as")
    parser.add_argument("--cosqa", type=Path, help="folder of CoSQA's codes.json and dev.json, which is not shipped")
    parser.add_argument("--only", nargs="*", help="sets to tell of; all but test by default")
    parser.add_argument("--write", action="store_true", help="bring docs/quality.md up to it")
    asked = parser.parse_args(arguments)
    measured, known = Measured(asked.work), sets(asked.cosqa)
    seeds = {f"seed {number}": folder for number, folder in enumerate(asked.student)}
    chosen = [name for name in known if name not in TESTS] if asked.only is None else asked.only
    for name in chosen:
        measured.measure(name, known[name](), {_START: asked.start, **seeds})
    lines = [
        "| set | start, cosine | cosine | IEM | hybrid | IEM over start | IEM over own cosine | hybrid over start |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *(row(measured, name, list(seeds)) for name in chosen),
    ]
    print(*lines, sep="\n")
    if asked.write:
        put(DOCUMENT, {"seeds": lines})
    return 0


if __name__ == "__main__":
    sys.exit(main())
