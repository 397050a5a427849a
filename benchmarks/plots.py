"""Pictures of a report: the roofline, speed-ups, latency against the corpus, memory against the batch.

python -m benchmarks.plots benchmarks/results/cpu-…/report.json docs/benchmarks
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from benchmarks.cost import SIZES
from d2llm.files import atomic_path
from d2llm_kernels.backends import KERNELS
from d2llm_kernels.measure.case import FOLDED, LITERAL

_COLORS = {"cpu": "#1b6ca8", "triton": "#1b6ca8", "cuda": "#1b6ca8", FOLDED: "#e08e0b", LITERAL: "#8a8a8a"}
_MARKERS = {"float32": "o", "bfloat16": "s", "float16": "^", "int8": "D"}
Report = dict[str, Any]


def roofline(report: Report, axes: Axes) -> None:
    """Operations a second against operations a byte, under what the machine can do."""
    ceilings = report["ceilings"]
    shown = set()
    for row in report["rows"]:
        if not row["flops"] or row["dtype"] not in ceilings["products"]:
            continue
        intensity = row["flops"] / row["bytes"]
        for name, found in row["variants"].items():
            if name not in _COLORS or "median_s" not in found:
                continue
            shown.add(row["dtype"])
            rate, marker = row["flops"] / found["median_s"] / 1e9, _MARKERS[row["dtype"]]
            axes.scatter(intensity, rate, 22, _COLORS[name], marker=marker, alpha=0.75)
    low, high = axes.get_xlim()
    low, high = max(low, 0.3), max(high, 1e3) * 2
    for dtype in sorted(shown):
        peak = ceilings["products"][dtype]
        ridge = peak / ceilings["copy"]
        axes.plot([low, ridge, high], [low * ceilings["copy"] / 1e9, peak / 1e9, peak / 1e9], "k-", lw=0.8)
        axes.annotate(f"{dtype}", (high, peak / 1e9), ha="right", va="bottom", fontsize=8)
    axes.annotate("copy", (low * 1.3, low * 1.3 * ceilings["copy"] / 1e9), va="bottom", rotation=35, fontsize=8)
    handles = [plt.Line2D([], [], marker="o", ls="", color=_COLORS[name], label=name) for name in _seen(report)]
    handles += [
        plt.Line2D([], [], marker=_MARKERS[dtype], ls="", color="k", mfc="none", label=dtype) for dtype in sorted(shown)
    ]
    axes.legend(handles=handles, fontsize=8, loc="lower right")
    axes.set(xscale="log", yscale="log", xlabel="FLOPs a byte, at least", ylabel="GFLOP/s", title="Roofline")


def speedups(report: Report, axes: Axes) -> None:
    """How many times as fast as the literal form."""
    bars = []
    for row in report["rows"]:
        for name, found in row["variants"].items():
            if name in (*KERNELS, FOLDED) and LITERAL in found.get("ratios", {}):
                bars.append((f"{row['operation']} {row['shape']} {row['dtype']}", name, found["ratios"][LITERAL]))
    labels = list(dict.fromkeys(label for label, _, _ in bars))
    for label, name, ratio in bars:
        place = len(labels) - labels.index(label) + (0.2 if name != FOLDED else -0.2)
        axes.barh(place, ratio, 0.4, color=_COLORS[name])
    axes.set_yticks(range(1, len(labels) + 1), reversed(labels), fontsize=6)
    axes.axvline(1, color="k", lw=0.8)
    axes.set_ylim(0.4, len(labels) + 0.6)
    handles = [
        plt.Rectangle((0, 0), 1, 1, color=_COLORS[name], label=name) for name in _seen(report) if name != LITERAL
    ]
    axes.legend(handles=handles, fontsize=8, loc="lower right")
    axes.set(xscale="log", xlabel="times as fast as the literal form", title="Speed-up")


def latency(report: Report, axes: Axes) -> None:
    """A query's time against the size of the corpus; hollow where it was scaled from a smaller one."""
    for number, row in enumerate(report["cost"]):
        color = f"C{number}"
        seconds = [row["totals_s"][str(size)] for size in SIZES]
        axes.plot(SIZES, seconds, "-", color=color, label=f"{row['system']}, {row['dtype']}")
        for size, value in zip(SIZES, seconds, strict=True):
            axes.plot(size, value, "o", color=color, mfc="none" if size in row["scaled"] else color)
    axes.legend(fontsize=7)
    axes.set(
        xscale="log", yscale="log", xlabel="passages", ylabel="seconds a query", title="A query, encoding included"
    )


def memory(report: Report, axes: Axes) -> None:
    """Peak memory of the losses over all pairs, against the batch."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for row in report["rows"]:
        if row["operation"].startswith("in_batch_terms"):
            batch = int(row["shape"].split()[0].removeprefix("B="))
            for name, found in row["variants"].items():
                if found.get("peak_bytes"):
                    lines.setdefault(name, []).append((batch, found["peak_bytes"] / 1e6))
    batches = sorted({batch for points in lines.values() for batch, _ in points})
    for name, points in lines.items():
        axes.plot(*zip(*sorted(points), strict=True), "o-", color=_COLORS.get(name, "C4"), label=name)
    axes.plot(batches, [4 * batch**2 / 1e6 for batch in batches], "k:", label="one (B, B) of float32")
    axes.legend(fontsize=8)
    axes.set(
        xscale="log", yscale="log", xlabel="B", ylabel="peak MB", title="In-batch losses, forward and backward, K=8"
    )


def pictures(report: Report) -> Iterator[tuple[str, tuple[float, float], Callable[[Report, Axes], None]]]:
    """Name, size in inches and painter of every picture that the report has figures for."""
    if report["rows"]:
        yield "roofline", (7, 5), roofline
        rows = sum(LITERAL in row["variants"] for row in report["rows"])
        yield "speedup", (9, 1.5 + 0.24 * rows), speedups
    if report.get("cost"):
        yield "latency", (7, 5), latency
    if any(row["operation"].startswith("in_batch_terms") for row in report["rows"]):
        yield "memory", (7, 5), memory


def draw(report: Report, folder: Path) -> list[Path]:
    """Write the pictures as PNG files into ``folder``."""
    written = []
    for name, size, paint in pictures(report):
        figure, axes = plt.subplots(figsize=size, dpi=110)
        paint(report, axes)
        figure.tight_layout()
        with atomic_path(folder / f"{name}.png") as path:
            figure.savefig(path, format="png", metadata={"Software": None})
        plt.close(figure)
        written.append(folder / f"{name}.png")
    return written


def _seen(report: Report) -> list[str]:
    names = dict.fromkeys(name for row in report["rows"] for name in row["variants"])
    return [name for name in names if name in _COLORS]
