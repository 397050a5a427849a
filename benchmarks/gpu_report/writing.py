"""The report as JSON and as Markdown, both written whole after every step, and the short table for the terminal."""

from pathlib import Path
from typing import Any

from benchmarks.gpu_report.case import COMPILED, FOLDED, KERNELS, LITERAL
from d2llm.files import atomic_path, write_json

_HEAD = ("operation", "shape", "dtype", "backend", "time", "host", "% of", "x literal", "x compiled", "x folded")
_TAIL = ("peak MB", "literal MB", "error", "spread", "targets")


def write(report: dict[str, Any], folder: Path) -> None:
    """Write ``report.json`` and ``report.md``."""
    write_json(folder / "report.json", report)
    with atomic_path(folder / "report.md") as path:
        path.write_text(markdown(report), encoding="utf-8")


def markdown(report: dict[str, Any]) -> str:
    """The whole report to read."""
    machine = report["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items() if number)
    tests = report["tests"]
    lines = [
        f"# {machine['device']}",
        "",
        f"{machine['architecture']}, driver {machine['driver']}, CUDA {machine['cuda']}, Python {machine['python']}, "
        f"{versions}; revision {machine['revision']}{' with local changes' if machine['dirty'] else ''}; "
        f"{report['date']}, {report['seconds']:.0f} s.",
        "",
        f"Parity tests: {tests['outcome']}, {tests['summary']}." if tests else "Parity tests: not run.",
        *(f"- {failure}" for failure in (tests or {}).get("failures", ())),
        "",
        f"Backends: {'; '.join(f'{name}: {state}' for name, state in machine['backends'].items())}. "
        f"Tiles: {', '.join(machine['tiles']) or 'of an older architecture'}.",
        "",
        *_ceilings(report["ceilings"]),
        "Times are medians of runs with a cold L2 cache; *host* is what the host needs to issue the call. "
        "*% of* counts the fewest operations and bytes against the nearer ceiling; float32 is multiplied as three "
        "tf32 products, which may pass the float32 product's rate. *x literal*: times as fast as the modules that "
        "build keys, values and pairs; a literal form that does not fit runs on a share of the pairs and is scaled "
        "up, and *literal MB* is what it would hold of all, at least.",
        "",
        *_grid([*_HEAD, *_TAIL], [line for row in report["rows"] for line in _lines(row)]),
        "",
    ]
    for row in report["end_to_end"]:
        lines += [
            f"{row['operation']}: {row['weights']} weights, D={row['width']}, {row['layers']} layers, "
            f"{row['tokens']} tokens, {row['dtype']}",
            "",
            *_grid(["backend", "tokens/s", "time", "x literal", "peak MB", "spread"], _whole(row)),
            "",
        ]
    for title, found in (("Could not run", report["could_not_run"]), ("Dropped for want of time", report["dropped"])):
        if found:
            lines += [f"{title}:", "", *(f"- {line}" for line in found), ""]
    return "\n".join(lines)


def short(report: dict[str, Any]) -> str:
    """A few columns, to end the run with."""
    columns = ("operation", "shape", "dtype", "backend", "time", "% of", "x literal", "targets")
    names = [*_HEAD, *_TAIL]
    rows = [[line[names.index(name)] for name in columns] for row in report["rows"] for line in _lines(row)]
    rows += [
        [row["operation"], f"D={row['width']}", row["dtype"], line[0], line[2], "", line[3], ""]
        for row in report["end_to_end"]
        for line in _whole(row)
    ]
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (columns, *rows)
    )


def _ceilings(ceilings: dict[str, Any] | None) -> list[str]:
    if ceilings is None:
        return []
    products = ", ".join(f"{name} {rate / 1e12:.4g}" for name, rate in ceilings["products"].items())
    return [f"Ceilings: copy {ceilings['copy'] / 1e12:.3g} TB/s read plus written; GEMM in TFLOP/s: {products}.", ""]


def _lines(row: dict[str, Any]) -> list[list[str]]:
    """A line for each backend with kernels, and one for each other variant."""
    lines = []
    for name, found in row["variants"].items():
        head = [row["operation"], row["shape"], row["dtype"], name]
        if "failure" in found:
            error = f"{found['error']:.1e}" if "error" in found else ""
            lines.append([*head, "FAILING", "", "", "", "", "", "", "", error, "", found["failure"]])
            continue
        ratios = found.get("ratios", {})
        targets = ""
        if name in KERNELS and row["target"]:
            targets = "missed " + ", ".join(found["missed"]) if found["missed"] else "met"
        share = "" if found["share"] == 1 else f" (from {100 * found['share']:.2g} %)"
        lines.append(
            [
                *head,
                _time(found["median_s"]) + share,
                _time(found["host_s"]),
                f"{found['percent']:.0f} % {row['bound']}",
                *(f"{ratios[other]:.1f}" if other in ratios else "" for other in (LITERAL, COMPILED, FOLDED)),
                _megabytes(found["peak_bytes"]),
                _megabytes(row["literal_bytes"]) if name == LITERAL else "",
                f"{found['error']:.1e}" if "error" in found else "",
                f"{100 * found['spread']:.0f} %",
                targets,
            ]
        )
    return lines


def _whole(row: dict[str, Any]) -> list[list[str]]:
    return [
        [name, "FAILING", found["failure"], "", "", ""]
        if "failure" in found
        else [
            name,
            f"{found['tokens_per_s']:.0f}",
            _time(found["median_s"]),
            f"{found['ratio']:.2f}" if "ratio" in found else "",
            _megabytes(found["peak_bytes"]),
            f"{100 * found['spread']:.0f} %",
        ]
        for name, found in row["variants"].items()
    ]


def _grid(head: list[str], rows: list[list[str]]) -> list[str]:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *cells)]


def _time(seconds: float) -> str:
    return (
        f"{seconds * 1e6:.1f} us"
        if seconds < 1e-3
        else f"{seconds * 1e3:.3g} ms"
        if seconds < 1
        else f"{seconds:.3g} s"
    )


def _megabytes(count: int | None) -> str:
    return "" if count is None else f"{count / 1e6:.0f}"
