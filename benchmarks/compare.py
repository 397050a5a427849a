"""Compare two runs: is B faster or slower than A, beyond noise?

    python -m benchmarks.compare before.json after.json        # two reports
    python -m benchmarks.compare main HEAD -- -k "iem_topk"    # two git revisions, measured here and now

Revisions are checked out side by side, their kernels compiled, and measured in turns (A, B, A, B) with the benchmarks
of this working tree, so that both answer the same questions; what follows ``--`` goes to pytest. A difference counts
when the times' outer deciles do not overlap and the medians differ by 5 % or more; of several runs the deciles of all
are taken together, so that a machine that changed pace between them widens both sides.
"""

import argparse
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from d2llm.errors import InputError
from d2llm.files import read_json
from d2llm_kernels.measure.writing import aligned, duration

ROOT = Path(__file__).parents[1]
#: Least difference of the medians that counts.
LEAST = 0.05
# What asks the questions: copied from the working tree into both revisions.
_QUESTIONS = ("benchmarks", "d2llm_kernels/measure")
_TURNS = 2


class Times(NamedTuple):
    """What one side found of a variant: seconds, or why there are none."""

    median_s: float
    low_s: float
    high_s: float
    failure: str | None = None


Key = tuple[str, str, str, str]


def verdict(before: Times, after: Times) -> str:
    """ "faster", "slower", "same", "broken" or "mended": B against A."""
    if before.failure or after.failure:
        return "same" if before.failure and after.failure else "broken" if after.failure else "mended"
    if after.high_s < before.low_s and after.median_s < before.median_s * (1 - LEAST):
        return "faster"
    if after.low_s > before.high_s and after.median_s > before.median_s * (1 + LEAST):
        return "slower"
    return "same"


def times(reports: Sequence[dict[str, Any]]) -> dict[Key, Times]:
    """The variants of one side's runs: the median of their medians, and the outermost of their deciles."""
    found: dict[Key, list[dict[str, Any]]] = {}
    for report in reports:
        for row in report["rows"]:
            for name, variant in row["variants"].items():
                found.setdefault((row["operation"], row["shape"], row["dtype"], name), []).append(variant)
    return {key: _together(variants) for key, variants in found.items()}


def _together(variants: list[dict[str, Any]]) -> Times:
    failed = next((variant["failure"] for variant in variants if "failure" in variant), None)
    if failed:
        return Times(math.nan, math.nan, math.nan, failed)
    medians = sorted(variant["median_s"] for variant in variants)
    middle = (medians[(len(medians) - 1) // 2] + medians[len(medians) // 2]) / 2
    return Times(middle, min(v["low_s"] for v in variants), max(v["high_s"] for v in variants))


def compare(before: dict[Key, Times], after: dict[Key, Times]) -> tuple[list[list[str]], dict[str, int], float]:
    """The table, how many rows came to each verdict, and how many times as fast B is by the geometric mean."""
    lines = [["operation", "shape", "dtype", "backend", "A", "B", "B is", "verdict"]]
    counts: dict[str, int] = {}
    logarithms = []
    for key in (key for key in before if key in after):
        a, b = before[key], after[key]
        said = verdict(a, b)
        counts[said] = counts.get(said, 0) + 1
        cells = [duration(side.median_s) if side.failure is None else "FAILING" for side in (a, b)]
        ratio = ""
        if not (a.failure or b.failure):
            logarithms.append(math.log(a.median_s / b.median_s))
            ratio = f"{a.median_s / b.median_s:.2f}x as fast"
        lines.append([*key, *cells, ratio, "" if said == "same" else said.upper()])
    mean = math.exp(sum(logarithms) / len(logarithms)) if logarithms else math.nan
    return lines, counts, mean


def pace(reports: Sequence[dict[str, Any]]) -> float | None:
    """The float32 product's rate on one side, to tell whether the machine itself was faster."""
    rates = [report["ceilings"]["products"]["float32"] for report in reports if report["ceilings"]]
    return sum(rates) / len(rates) if rates else None


@contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """A work tree of a revision with this tree's benchmarks and its own kernels compiled."""
    with tempfile.TemporaryDirectory(prefix="d2llm-compare-") as folder:
        tree = Path(folder) / "tree"
        subprocess.run(["git", "-C", ROOT, "worktree", "add", "--quiet", "--detach", tree, revision], check=True)
        try:
            for part in _QUESTIONS:
                shutil.rmtree(tree / part, ignore_errors=True)
                shutil.copytree(ROOT / part, tree / part, ignore=shutil.ignore_patterns("results", "__pycache__"))
            command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
            subprocess.run(command, cwd=tree, check=True, stdout=subprocess.DEVNULL)
            yield tree
        finally:
            subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", tree], check=True)


def measure(revisions: Sequence[str], options: Sequence[str]) -> list[list[dict[str, Any]]]:
    """The reports of each revision, measured in turns."""
    found: list[list[dict[str, Any]]] = [[], []]
    with checked_out(revisions[0]) as first, checked_out(revisions[1]) as second:
        for turn in tqdm(range(2 * _TURNS), desc="runs", unit="run"):
            tree = (first, second)[turn % 2]
            out = tree.parent / f"run-{turn}"
            command = [
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "--benchmark-quiet",
                "benchmarks",
                f"--out={out}",
                *options,
            ]
            environment = {**os.environ, "PYTHONPATH": str(tree)}
            done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
            if not (out / "report.json").is_file():
                raise InputError(
                    f"{revisions[turn % 2]}: no report; pytest said\n{done.stdout[-3000:]}{done.stderr[-1000:]}"
                )
            found[turn % 2].append(read_json(out / "report.json"))
    return found


def main(arguments: list[str] | None = None) -> int:
    """Run the program; 1 if something is slower or broken."""
    arguments = sys.argv[1:] if arguments is None else arguments
    split = arguments.index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__.splitlines()[0])
    parser.add_argument("a", help="report, or git revision")
    parser.add_argument("b", help="report, or git revision")
    options = parser.parse_args(arguments[:split])
    sides = (options.a, options.b)
    files = [Path(side).is_file() for side in sides]
    if all(files):
        reports = [[read_json(side)] for side in sides]
    elif any(files):
        parser.error("expected two reports or two revisions, got one of each")
    else:
        reports = measure(sides, arguments[split + 1 :])
    lines, counts, mean = compare(*(times(side) for side in reports))
    print(aligned(lines))
    paces = [pace(side) for side in reports]
    if paces[0] and paces[1] and abs(paces[1] / paces[0] - 1) > LEAST:
        print(f"\nThe machine itself multiplied {paces[1] / paces[0]:.2f} times as fast for B: measure both in turns.")
    said = ", ".join(f"{number} {name}" for name, number in sorted(counts.items())) or "nothing in common"
    print(f"\nB is {mean:.2f}x as fast as A by the geometric mean of {len(lines) - 1} rows: {said}.")
    return int(bool(counts.get("slower") or counts.get("broken")))


if __name__ == "__main__":
    sys.exit(main())
