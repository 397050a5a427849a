"""Rows as a table: aligned for a terminal, in Markdown for a file."""

from collections.abc import Iterable, Sequence
from typing import Any

from d2llm_kernels.backends import KERNELS
from d2llm_kernels.measure.case import COMPILED, FOLDED, LITERAL

#: What the columns say, for those who meet them for the first time.
LEGEND = (
    "time: median of the runs; +-: distance of the outer deciles, as a share of it",
    "x reference: how many times as fast as the formulas of the paper taken literally; x compiled: those under "
    "torch.compile; x folded: our algebra in plain torch",
    "% of limit: the fewest operations and bytes that the result needs, at this machine's fastest multiplication and "
    "copy as measured in this run, against the time that it took",
    "peak MB: most memory of tensors held at once, results included",
    "reference (1 %): it ran on that share of the work, and its time was scaled up",
)
_HEAD = (
    "operation",
    "shape",
    "dtype",
    "GFLOP",
    "MB",
    "backend",
    "time",
    "+-",
    "x reference",
    "x compiled",
    "x folded",
    "% of limit",
    "peak MB",
    "rate",
    "p99",
    "host",
    "literal MB",
    "error",
    "targets",
)
#: Columns of a short table.
SHORT = ("operation", "shape", "dtype", "backend", "time", "x reference", "% of limit", "targets")


def table(
    rows: Iterable[dict[str, Any]], columns: Sequence[str] = _HEAD, without: Sequence[str] = ()
) -> list[list[str]]:
    """Head and lines of a table, a line for each variant; columns that are empty throughout are left out."""
    lines = [line for row in rows for line in _lines(row)]
    wanted = [
        place
        for place, name in enumerate(_HEAD)
        if name in columns and name not in without and any(line[place] for line in lines)
    ]
    return [[line[place] for place in wanted] for line in (list(_HEAD), *lines)]


def aligned(cells: list[list[str]]) -> str:
    """A table for a terminal; what repeats the line above is left blank."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    shown, above = [], [""] * len(widths)
    for line in cells:
        blank = line[:3] == above[:3]
        words = ["" if blank and place < 5 and cell == above[place] else cell for place, cell in enumerate(line)]
        shown.append("  ".join(word.ljust(width) for word, width in zip(words, widths, strict=True)).rstrip())
        above = line
    return "\n".join(shown)


def markdown(cells: list[list[str]]) -> list[str]:
    """A table in Markdown."""
    head, *lines = [[cell.replace("|", "\\|") for cell in line] for line in cells]
    return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines)]


def ceilings_line(ceilings: dict[str, Any]) -> str:
    """The ceilings in a sentence."""
    unit, name = (1e12, "T") if max(ceilings["products"].values()) > 1e13 else (1e9, "G")
    products = ", ".join(f"{dtype} {rate / unit:.4g}" for dtype, rate in ceilings["products"].items())
    gemm = ", ".join(f"{dtype} {rate / unit:.4g}" for dtype, rate in ceilings.get("gemm", {}).items())
    return (
        f"Ceilings: copy {ceilings['copy'] / 1e9:.3g} GB/s read plus written; products in {name}FLOP/s: {products}"
        f"{f' (torch.matmul: {gemm})' if gemm else ''}."
    )


def machine_line(report: dict[str, Any]) -> str:
    """The machine, versions and revision in a sentence."""
    machine = report["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items() if number)
    where = [machine["device"], machine["architecture"]]
    if "threads" in machine:
        where.append(f"{machine['threads']} threads")
    if machine.get("kernels"):
        where.append(f"instructions {machine['kernels']['instruction_set']}")
    if machine.get("driver"):
        where.append(f"driver {machine['driver']}, CUDA {machine['cuda']}")
    revision = f"{machine['revision']}{' with local changes' if machine['dirty'] else ''}"
    return f"{', '.join(where)}; Python {machine['python']}, {versions}; revision {revision}; {report['date']}."


def duration(seconds: float) -> str:
    """A time in the unit that suits it."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.1f} us"
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def rate(count: float, seconds: float, what: str) -> str:
    """How many of something are handled in a second."""
    speed = count / seconds
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if speed >= unit:
            return f"{speed / unit:.3g} {name} {what}/s"
    return f"{speed:.3g} {what}/s"


def _lines(row: dict[str, Any]) -> list[list[str]]:
    return [_line(row, name, found) for name, found in row["variants"].items()]


def _line(row: dict[str, Any], name: str, found: dict[str, Any]) -> list[str]:
    cells = dict.fromkeys(_HEAD, "") | {
        "operation": row["operation"],
        "shape": row["shape"],
        "dtype": row["dtype"],
        "GFLOP": f"{row['flops'] / 1e9:.3g}",
        "MB": f"{row['bytes'] / 1e6:.3g}",
        "backend": name,
        "error": f"{found['error']:.1e}" if "error" in found else "",
        "literal MB": megabytes(row["literal_bytes"] or None) if name == LITERAL else "",
    }
    if "failure" in found:
        return list((cells | {"time": "FAILING", "targets": found["failure"]}).values())
    ratios = found["ratios"]
    targets = ""
    if name in KERNELS and row["target"]:
        targets = "missed " + ", ".join(found["missed"]) if found["missed"] else "met"
    share = "" if found["share"] == 1 else f" ({100 * found['share']:.2g} %)"
    cells |= {
        "backend": name + share,
        "time": duration(found["median_s"]),
        "+-": f"{100 * found['spread']:.0f} %",
        **{
            f"x {title}": f"{ratios[other]:.3g}" if other in ratios else ""
            for title, other in (("reference", LITERAL), ("compiled", COMPILED), ("folded", FOLDED))
        },
        "% of limit": f"{found['percent']:.2g} % {row['bound']}",
        "peak MB": megabytes(found["peak_bytes"]),
        "rate": rate(row["items"][1], found["median_s"], row["items"][0]) if row["items"] else "",
        "p99": duration(found["p99_s"]) if row["items"] and row["items"][0] == "queries" else "",
        "host": duration(found["host_s"]),
        "targets": targets,
    }
    return list(cells.values())


def megabytes(count: int | None) -> str:
    """Bytes in MB, or nothing for None."""
    return "" if count is None else f"{count / 1e6:.3g}"
