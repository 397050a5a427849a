"""Quality against cost as a picture."""

import os

from matplotlib.figure import Figure

from d2llm.evaluation.compare import Comparison
from d2llm.files import atomic_path

#: Columns, what they are called, and the scale of their axis.
_COSTS = {"search_ms": ("milliseconds a query", "log"), "bytes": ("bytes a passage", "linear")}


def draw_costs(table: Comparison, metric: str, path: str | os.PathLike[str]) -> None:
    """Write a PNG: every system that has the metric, against its time a query and its bytes a passage."""
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    for axes, (cost, (label, scale)) in zip(figure.subplots(1, 2), _COSTS.items(), strict=True):
        for row in table.rows:
            if metric in row.metrics and row.metrics.get(cost):
                point = (row.metrics[cost], row.metrics[metric])
                axes.plot(*point, "o")
                axes.annotate(row.name, point, xytext=(0, 6), textcoords="offset points", ha="center", fontsize=8)
        axes.set(xlabel=label, ylabel=metric, xscale=scale)
        axes.margins(x=0.25, y=0.12)
        axes.grid(alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
