"""Quality against cost as a picture."""

import os

from matplotlib.figure import Figure

from d2llm.evaluation.compare import Comparison
from d2llm.files import atomic_path

_COSTS = {"search_ms": "milliseconds a query", "bytes": "bytes a passage"}


def draw_costs(table: Comparison, metric: str, path: str | os.PathLike[str]) -> None:
    """Write a PNG: every system that has the metric, against its time a query and its bytes a passage."""
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    for axes, (cost, label) in zip(figure.subplots(1, 2), _COSTS.items(), strict=True):
        for row in table.rows:
            if metric in row.metrics and row.metrics.get(cost):
                point = (row.metrics[cost], row.metrics[metric])
                axes.plot(*point, "o")
                axes.annotate(row.name, point, xytext=(5, 4), textcoords="offset points", fontsize=8)
        axes.set(xlabel=label, ylabel=metric, xscale="log")
        axes.margins(x=0.3, y=0.12)
        axes.grid(alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
