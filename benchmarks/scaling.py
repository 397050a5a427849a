"""What an index of many passages would take, from the committed report: python -m benchmarks.scaling --write.

Bytes a passage follow from the format of the index, times and their exponents from the report's rows, what a machine
has and costs from the options. Nothing here was run at such sizes.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.document import put
from d2llm.files import read_json
from d2llm_kernels.measure import writing

DOCUMENT = Path(__file__).parents[1] / "docs" / "scaling.md"
REPORT = Path(__file__).parent / "results" / "cpu-amd-epyc-2-threads" / "report.json"
# Of an index in int8, by passage: the scale; offset, key and length of what is looked up; the postings of BM25, as
# measured on the standard library's functions (docs/index.md).
_SCALE, _LOOKUP, _POSTINGS = 4, 8 + 8 + 4, 179
# Of each passage where a query is asked: its position, whether it is deleted, and BM25's norm.
_ASKED = 8 + 1 + 4
_HOURS = 730  # a month
# From so many passages on, what a call costs by itself no longer shows.
_LARGE = 100_000


def exponent(sizes: list[int], times: list[float]) -> float:
    """Of what grows as a power of its size, by least squares."""
    return float(np.polyfit(np.log(sizes), np.log(times), 1)[0])


def exhaustive(report: dict[str, Any]) -> tuple[list[int], list[float]]:
    """Passages and seconds of the exhaustive searches in int8 by one query."""
    rows = [row for row in report["rows"] if row["operation"] == "iem_topk" and row["dtype"] == "int8"]
    alone = [(row["items"][1], row["variants"]["cpu"]["median_s"]) for row in rows if row["shape"].startswith("1 x ")]
    alone = [(size, time) for size, time in alone if size >= _LARGE]
    sizes, times = zip(*sorted(alone), strict=True)
    return list(sizes), list(times)


def table(report: dict[str, Any], given: argparse.Namespace) -> list[list[str]]:
    """A row for each number of passages."""
    sizes, times = exhaustive(report)
    power = exponent(sizes, times)
    bandwidth = given.bandwidth * 1e9 if given.bandwidth else report["ceilings"]["copy"]
    head = [
        "passages",
        "disk",
        "surrogate",
        "candidates",
        "all of them, on two cores",
        "machines",
        "a query",
        "a month",
    ]
    found = [head]
    for count in (10**6, 10**7, 10**8, 10**9):
        disk = count * (given.hidden + _SCALE + _LOOKUP + _POSTINGS + given.rank + given.text)
        candidates = given.candidates * (count / 10**6) ** given.growth
        full = times[-1] * (count / sizes[-1]) ** power
        scored = candidates * times[-1] / sizes[-1]
        scan = count * given.rank / bandwidth
        # What is left of the time once candidates are scored is for the scan, and memory holds the surrogate.
        left = given.target / 1000 - scored
        needed = max(scan / left if left > 0 else math.inf, count * given.rank / (given.memory * 1e9))
        machines = max(1, math.ceil(needed)) if math.isfinite(needed) else 0
        found.append(
            [
                f"{count:,}",
                f"{disk / 1e9:,.1f} GB",
                f"{count * given.rank / 1e9:,.1f} GB",
                f"{candidates:,.0f}",
                f"{full:,.1f} s",
                f"{machines:,}" if machines else "no number of them",
                f"{1000 * (scan / machines + scored):.0f} ms" if machines else "",
                f"{machines * given.cost * _HOURS:,.0f}" if machines else "",
            ]
        )
    return found


def lines(report: dict[str, Any], given: argparse.Namespace) -> list[str]:
    """The table, and what it was computed with."""
    sizes, times = exhaustive(report)
    bandwidth = given.bandwidth or report["ceilings"]["copy"] / 1e9
    return [
        *writing.markdown(table(report, given)),
        "",
        f"Exhaustive search in int8 by two cores grows as N^{exponent(sizes, times):.3f} from {sizes[0]:,} to "
        f"{sizes[-1]:,} passages ({1000 * times[-1] * 1e6 / sizes[-1]:.0f} ms a million at the last). Memory is read "
        f"at {bandwidth:.1f} GB/s a machine. R = {given.rank}, F = {given.hidden}, {given.text} bytes of text a "
        f"passage, {given.candidates:,} candidates at a million and N^{given.growth} from there, {given.memory:g} GB "
        f"of memory a machine at {given.cost:g} an hour, {given.target:g} ms for a query. Where it is asked, "
        f"{_ASKED * 10**9 / 1e9:.0f} GB for 10^9 passages.",
    ]


def main() -> None:
    """Print the table, or put it into docs/scaling.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--report", type=Path, default=REPORT)
    parser.add_argument("--hidden", type=int, default=512, help="F")
    parser.add_argument("--rank", type=int, default=128, help="R of the surrogate")
    parser.add_argument("--text", type=int, default=500, help="bytes of a passage's text")
    parser.add_argument("--candidates", type=float, default=6500, help="that a promise of 0.99 takes at a million")
    parser.add_argument("--growth", type=float, default=0.67, help="exponent by which they grow")
    parser.add_argument("--memory", type=float, default=64, help="GB of a machine")
    parser.add_argument("--bandwidth", type=float, default=0, help="GB/s that a machine reads; 0 takes the report's")
    parser.add_argument("--cost", type=float, default=1, help="of a machine in an hour")
    parser.add_argument("--target", type=float, default=200, help="ms that a query may take")
    parser.add_argument("--write", action="store_true", help="put the table into docs/scaling.md")
    given = parser.parse_args()
    made = lines(read_json(given.report), given)
    if not given.write:
        print("\n".join(made))
        return
    put(DOCUMENT, {"model": made})


if __name__ == "__main__":
    main()
