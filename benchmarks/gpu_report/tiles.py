"""Tiles tried in passing: lags of the pooling kernel, and a dozen candidates of each kernel at the main widths."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from d2llm_kernels.backends.triton import table
from d2llm_kernels.measure.timing import Timer
from tools import tune

#: Score jobs between those of a sequence and its pool jobs; 132 is one for each multiprocessor of a Hopper GPU.
LAGS = (0, 132, 264)
_WIDTHS = {"pool": ({"D": 4096, "H": 32}, {"D": 1024, "H": 16}), "": ({"F": 512},)}
_SMOKE_WIDTHS = {"pool": ({"D": 64, "H": 4},), "": ({"F": 64},)}


def rows(smoke: bool) -> Iterator[tune.Row]:
    """Rows of the table worth a look, the main widths of each kernel first."""
    widths, kind = (_SMOKE_WIDTHS, tune.SINGLE) if smoke else (_WIDTHS, tune.HALF)
    kernels = ("pool_forward", "scores") if smoke else tuple(tune.CANDIDATES)
    for place in range(max(map(len, widths.values()))):
        for kernel in kernels:
            wide = widths["pool" if kernel.startswith("pool") else ""]
            for found in wide[place : place + 1]:
                yield tune.Row(kernel, found, *kind)


def lags(row: tune.Row, timer: Timer, smoke: bool) -> dict[str, Any]:
    """Seconds of ``attn_pool``'s forward pass with the usual tiles and each lag, or why there are none."""
    sizes = tune.SMOKE if smoke else tune.FULL
    call = tune.trial(row.kernel, row.widths, row.dtype, timer.device, sizes)
    usual = tune.usual(row, table.architecture(timer.device))
    found: dict[str, Any] = {}
    for lag in LAGS:
        with tune.chosen(row.kernel, usual | {"LAG": lag}):
            right = call.check().passed
            found[str(lag)] = timer.sample(call.run).median_s if right else "wrong"
    return found


def advance(row: tune.Row, timer: Timer, folder: Path, deadline: float, smoke: bool) -> dict[str, Any]:
    """Try a dozen more candidates of a row, and bring ``table.json`` in ``folder`` up to them."""
    arch, source = table.architecture(timer.device), tune.origin(timer)
    path = folder / "table.json"
    if not path.exists():
        shutil.copy(table.PATH, path)
    tried = row.tried(folder / "tried.jsonl", source)
    best = tune.advance(row, tried, timer, tune.SMOKE if smoke else tune.FULL, deadline)
    tune.keep(row, tried, arch, source, path)
    usual = tune.usual(row, arch)
    found = {"usual": usual, "usual_s": tried.seconds(usual)}
    return found if best is None else found | {"best": best[1], "best_s": best[0]}
