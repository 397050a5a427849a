"""The report as JSON and as Markdown, both written whole after every step, and the short table for the terminal."""

from pathlib import Path
from typing import Any

from d2llm.bench import writing
from d2llm.files import atomic_path, write_json

_WHOLE = ["backend", "tokens/s", "time", "x reference", "peak MB", "+-"]


def write(report: dict[str, Any], folder: Path) -> None:
    """Write ``report.json`` and ``report.md``."""
    write_json(folder / "report.json", report)
    with atomic_path(folder / "report.md") as path:
        path.write_text(markdown(report), encoding="utf-8")


def markdown(report: dict[str, Any]) -> str:
    """The whole report to read."""
    machine, tests = report["machine"], report["tests"]
    lines = [
        f"# {machine['device']}",
        "",
        f"{writing.machine_line(report)} {report['seconds']:.0f} s.",
        "",
        f"Parity tests: {tests['outcome']}, {tests['summary']}." if tests else "Parity tests: not run.",
        *(f"- {failure}" for failure in (tests or {}).get("failures", ())),
        *(f"{tool}: {found['outcome']}, {found['summary']}." for tool, found in report["sanitizers"].items()),
        "",
        f"Backends: {'; '.join(f'{name}: {state}' for name, state in machine['backends'].items())}. "
        f"Tiles: {', '.join(machine.get('tiles', ())) or 'of an older architecture'}.",
        "",
    ]
    if report["ceilings"]:
        lines += [writing.ceilings_line(report["ceilings"]), ""]
    lines += [
        *(f"- {sentence}." for sentence in writing.LEGEND),
        "- Runs begin with a cold L2 cache; host: what the host needs to issue the call. float32 is multiplied as "
        "three tf32 products, which may pass the float32 product's rate.",
        "- literal MB: what the literal form would hold of all the work, at least.",
        "",
        *writing.markdown(writing.table(report["rows"])),
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
    for title, found in (("Could not run", report["could_not_run"]), ("Dropped for want of time", report["dropped"])):
        if found:
            lines += [f"{title}:", "", *(f"- {line}" for line in found), ""]
    return "\n".join(lines)


def short(report: dict[str, Any]) -> str:
    """A few columns, to end the run with."""
    parts = [writing.aligned(writing.table(report["rows"], writing.SHORT))]
    for row in report["end_to_end"]:
        parts += ["", f"{row['operation']}, D={row['width']}, {row['dtype']}", writing.aligned([_WHOLE, *_whole(row)])]
    return "\n".join(parts)


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
