"""The report as JSON and as Markdown, both written whole after every step, and the short table for the terminal."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.gpu_report.state import DROPPED, FAILED, IN_HAND
from d2llm.files import atomic_path, write_json
from d2llm_kernels.measure import writing

_WHOLE = ["backend", "tokens/s", "time", "x reference", "peak MB", "+-"]

_UNFINISHED = {
    "Could not run": FAILED,
    "In hand when a call ended": IN_HAND,
    "Dropped for want of time": DROPPED,
}


def write(report: dict[str, Any], folder: Path) -> None:
    """Write ``report.json`` and ``report.md``."""
    write_json(folder / "report.json", report)
    with atomic_path(folder / "report.md") as path:
        path.write_text(markdown(report), encoding="utf-8")


def markdown(report: dict[str, Any]) -> str:
    """The whole report to read."""
    machine = report["machine"]
    lines = [
        f"# {machine['device']}",
        "",
        f"{writing.machine_line(report)} {report['seconds']:.0f} s.",
        "",
        f"CUDA kernels: {report['build'] or 'not built'}.",
        *(f"{name}: {found['outcome']}, {found['summary']}." for name, found in _checks(report).items()),
        *(f"- {failure}" for found in _checks(report).values() for failure in found["failures"]),
        "",
        f"Backends: {'; '.join(f'{name}: {state}' for name, state in machine['backends'].items())}. "
        f"Tiles: {', '.join(machine.get('tiles', ())) or 'of an older architecture'}.",
        "",
    ]
    if report["ceilings"]:
        lines += [writing.ceilings_line(report["ceilings"]), ""]
    if report["l2"]:
        lines += [f"L2 cache to multiprocessors: {report['l2'] / 1e9:.4g} GB/s.", ""]
    lines += _list("Every kernel once", (launch["line"] for launch in report["launches"].values()))
    lines += [
        *(f"- {sentence}." for sentence in writing.LEGEND),
        "- Runs begin with a cold L2 cache; host: what the host needs to issue the call. float32 is multiplied as "
        "three tf32 products, which may pass the float32 product's rate.",
        "- literal MB: what the literal form would hold of all the work, at least.",
        "",
        *(writing.markdown(writing.table(report["rows"])) if report["rows"] else ()),
        "",
    ]
    for row in report["end_to_end"]:
        lines += [
            f"{row['operation']}: {row['weights']} weights, D={row['width']}, {row['layers']} layers, "
            f"{row['tokens']} tokens, {row['dtype']}",
            "",
            *writing.markdown([_WHOLE, *_whole(row)]),
            "",
        ]
    lines += _list("Lags", _lags(report))
    lines += _list("Tiles, the best of those tried so far", _tiles(report))
    for title, outcome in _UNFINISHED.items():
        lines += _list(title, unfinished(report, outcome))
    return "\n".join(lines)


def unfinished(report: dict[str, Any], outcome: str) -> list[str]:
    """Steps that came to this outcome, each with what is known of it."""
    steps = report["steps"].items()
    return [f"{name}: {note['why']}" if note["why"] else name for name, note in steps if note["outcome"] == outcome]


def short(report: dict[str, Any]) -> str:
    """A few columns and what did not go well, to end the run with."""
    parts = [writing.aligned(writing.table(report["rows"], writing.SHORT))] if report["rows"] else []
    for row in report["end_to_end"]:
        parts += ["", f"{row['operation']}, D={row['width']}, {row['dtype']}", writing.aligned([_WHOLE, *_whole(row)])]
    parts += [*_lags(report), *_tiles(report)]
    for title, outcome in _UNFINISHED.items():
        parts += [f"{title.lower()}: {line}" for line in unfinished(report, outcome)]
    parts += [launch["line"] for launch in report["launches"].values() if not launch["right"]]
    parts += [f"{name}: {found['outcome']}, {found['summary']}" for name, found in _checks(report).items()]
    return "\n".join(parts)


def _checks(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    tests = {} if report["tests"] is None else {"parity tests": report["tests"]}
    return tests | report["sanitizers"]


def _list(title: str, entries: Iterable[str]) -> list[str]:
    found = [f"- {entry}" for entry in entries]
    return [f"{title}:", "", *found, ""] if found else []


def _lags(report: dict[str, Any]) -> list[str]:
    lines = []
    for name, found in report["lags"].items():
        times = (f"{lag} {s if isinstance(s, str) else writing.duration(s)}" for lag, s in found.items())
        lines.append(f"{name}: {', '.join(times)}")
    return lines


def _tiles(report: dict[str, Any]) -> list[str]:
    lines = []
    for name, found in report["tiles"].items():
        usual = "" if found["usual_s"] is None else f" {writing.duration(found['usual_s'])}"
        best = f"{writing.duration(found['best_s'])} with {found['best']}" if "best" in found else "none is right"
        lines.append(f"{name}: usual{usual}, best {best}")
    return lines


def _whole(row: dict[str, Any]) -> list[list[str]]:
    return [
        [name, "FAILING", found["failure"], "", "", ""]
        if "failure" in found
        else [
            name,
            f"{found['tokens_per_s']:.0f}",
            writing.duration(found["median_s"]),
            f"{found['ratio']:.2f}" if "ratio" in found else "",
            writing.megabytes(found["peak_bytes"]),
            f"{100 * found['spread']:.0f} %",
        ]
        for name, found in row["variants"].items()
    ]
