"""The demonstration as a picture: loss parts over the steps, and the table's MRR as bars with intervals."""

import os
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from d2llm.evaluation.significance import Means, difference
from d2llm.files import atomic_path

_PART = "loss_"


def draw(losses: Sequence[Mapping[str, float]], ranks: Mapping[str, np.ndarray], path: str | os.PathLike[str]) -> None:
    """Write a PNG with the loss parts of ``losses`` and the MRR of every system with its 95 % interval.

    Args:
        ranks: (Nq,) reciprocal ranks by system.
    """
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    parts = sorted({name for entry in losses for name in entry if name.startswith(_PART)})
    for part in parts:
        steps = [entry["step"] for entry in losses if part in entry]
        left.plot(steps, [entry[part] for entry in losses if part in entry], label=part.removeprefix(_PART))
    left.set(title="Losses with the teacher", xlabel="step", ylabel="weighted loss", yscale="log")
    left.legend(loc="center right")
    found = {name: difference(Means(each, np.zeros_like(each))) for name, each in list(ranks.items())[::-1]}
    around = np.array([(each.value - each.low, each.high - each.value) for each in found.values()]).T
    bars = right.barh(list(found), [each.value for each in found.values()], xerr=around, ecolor="0.3", capsize=3)
    right.bar_label(bars, fmt="%.3f", padding=3)
    right.set(title="Held-out queries, 95 % intervals over them", xlabel="MRR", xlim=(0, 1))
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
