"""The demonstration as a picture: loss parts over the steps, and the table's MRR as bars."""

import os
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from d2llm.evaluation.compare import Comparison
from d2llm.files import atomic_path

_PART = "loss_"


def draw(
    losses: Sequence[Mapping[str, float]], comparison: Comparison, path: str | os.PathLike[str], metric: str = "mrr"
) -> None:
    """Write a PNG with the loss parts of ``losses`` and a bar of ``metric`` for every row."""
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    parts = sorted({name for entry in losses for name in entry if name.startswith(_PART)})
    for part in parts:
        steps = [entry["step"] for entry in losses if part in entry]
        left.plot(steps, [entry[part] for entry in losses if part in entry], label=part.removeprefix(_PART))
    left.set(title="Losses with the teacher", xlabel="step", ylabel="weighted loss", yscale="log")
    left.legend(loc="center right")
    names = [row.name for row in comparison.rows][::-1]
    bars = right.barh(names, [row.metrics[metric] for row in comparison.rows][::-1])
    right.bar_label(bars, fmt="%.3f", padding=3)
    right.set(title="Held-out queries", xlabel=metric.upper(), xlim=(0, 1))
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
