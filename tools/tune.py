"""Time the candidate tiles of the Triton kernels on the GPU at hand, and keep the fastest right ones in the table.

    make tune                                   # everything that was not timed on this GPU yet
    make tune ARGS='--kernel scores --again'    # one kernel, anew

A candidate is compiled, held against the reference, and timed with a cold L2 cache inside the call that uses it. The
table is written after each row, so that a run that is stopped goes on where it was.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
from tqdm import tqdm

from d2llm.bench.problems import Interaction, Pool, Verdict
from d2llm.bench.timing import GpuTimer, Timer
from d2llm_kernels.backends import interpreted
from d2llm_kernels.triton import table

Widths = dict[str, int]
HALF, SINGLE = (torch.bfloat16, ["float16", "bfloat16"]), (torch.float32, ["float32"])

POOLING: tuple[Widths, ...] = ({"D": 576, "H": 9}, {"D": 1024, "H": 16}, {"D": 4096, "H": 32}, {"D": 8192, "H": 64})
INTERACTION: tuple[Widths, ...] = ({"F": 256}, {"F": 512}, {"F": 1024})
_WARPS, _STAGES = (4, 8), (2, 3, 4)
_PRODUCT = {"BLOCK_M": (64, 128), "BLOCK_N": (64, 128, 256), "BLOCK_K": (32, 64)}

# What is tried of each kernel, as products of these values.
CANDIDATES: dict[str, dict[str, tuple[int, ...]]] = {
    "pool_forward": {
        "BLOCK_L": (32, 64, 128), "BLOCK_D": (64, 128), "SLICE": (64, 128, 256), "SPLITS": (1, 2, 4, 8),
        "LAG": (0, 64, 132), "num_warps": (4,), "num_stages": (2, 3, 4),
    },
    "pool_products": {"BLOCK_L": (32, 64, 128), "BLOCK_D": (32, 64, 128), "num_warps": _WARPS, "num_stages": _STAGES},
    "pool_softmax": {"BLOCK_L": (32, 64, 128), "num_warps": _WARPS, "num_stages": (2,)},
    "pool_gradients": {"BLOCK_L": (32, 64), "SLICE": (64, 128, 256), "num_warps": _WARPS, "num_stages": _STAGES},
    **{
        kernel: {**_PRODUCT, "num_warps": _WARPS, "num_stages": _STAGES}
        for kernel in ("scores", "features", "slopes", "slopes_features", "inputs", "weights")
    },
}  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """How large the calls are that candidates are timed in."""

    batch: int
    length: int
    queries: int
    passages: int


FULL, SMOKE = Sizes(64, 256, 512, 4096), Sizes(2, 20, 3, 33)


@dataclass(frozen=True)
class Trial:
    """A call that a kernel is timed in, and the judge of its result."""

    run: Callable[[], object]
    check: Callable[[], Verdict]


def trial(kernel: str, widths: Widths, dtype: torch.dtype, device: torch.device, sizes: Sizes) -> Trial:
    """The call that launches ``kernel``."""
    gradients = kernel not in ("pool_forward", "scores", "features")
    if "D" in widths:
        problem = Pool(device, dtype, sizes.batch, sizes.length, widths["D"], widths["H"], "whole")
        run = problem.backward if gradients else problem.forward
        return Trial(partial(run, "triton"), partial(problem.check, "triton", gradients))
    features = kernel in ("features", "slopes_features")
    queries = sizes.passages if features else sizes.queries
    pairs = Interaction(device, dtype, queries, sizes.passages, widths["F"], features, features)
    if gradients:
        return Trial(partial(pairs.backward, "triton", pairs.slopes()), partial(pairs.check, "triton", True))
    return Trial(partial(pairs.forward, "triton"), partial(pairs.check, "triton", False))


@contextmanager
def chosen(kernel: str, tiles: table.Tiles) -> Iterator[None]:
    """Let ``kernel`` run with these tiles and every other with its own."""
    usual = table.tiles

    def instead(name: str, arch: str, dtype: torch.dtype, **widths: int) -> table.Tiles:
        return usual(name, arch, dtype, **widths) | (tiles if name == kernel else {})

    table.tiles = instead  # type: ignore[assignment]
    try:
        yield
    finally:
        table.tiles = usual


def candidates(kernel: str, widths: Widths) -> list[table.Tiles]:
    """All tiles to try, blocks wider than the width left out; in the interpreter, where time says nothing, two."""
    options = CANDIDATES[kernel]
    width = max(16, triton.next_power_of_2(widths.get("D", widths.get("F", 0))))
    found = [dict(zip(options, values, strict=True)) for values in itertools.product(*options.values())]
    wide = ("BLOCK_D", "SLICE", "BLOCK_N", "BLOCK_K")
    fitting = [tiles for tiles in found if all(tiles[name] <= width for name in wide if name in tiles)]
    return fitting[:2] if interpreted() else fitting


def fastest(
    kernel: str, widths: Widths, dtype: torch.dtype, timer: Timer, sizes: Sizes, deadline: float
) -> tuple[float, table.Tiles] | None:
    """The fastest candidate that is right, with its seconds; None if none is, or time ran out before all were tried."""
    call = trial(kernel, widths, dtype, timer.device, sizes)
    best: tuple[float, table.Tiles] | None = None
    label = f"{kernel} {' '.join(f'{k}={v}' for k, v in widths.items())} {str(dtype).removeprefix('torch.')}"
    for tiles in tqdm(candidates(kernel, widths), desc=label, leave=False):
        if time.monotonic() > deadline:
            return None
        with chosen(kernel, tiles):
            try:
                # Compiles; what needs more registers or shared memory than there are fails here.
                call.run()
                seconds = timer.sample(call.run).median_s
                if (best is None or seconds < best[0]) and call.check().passed:
                    best = seconds, tiles
            except Exception as error:
                tqdm.write(f"{label} {tiles}: {type(error).__name__}")
    if best is not None:
        print(f"{label}: {best[0] * 1e6:.1f} us with {best[1]}", flush=True)
    return best


def replaced(rows: list[dict[str, Any]], row: dict[str, Any]) -> list[dict[str, Any]]:
    """``rows`` with ``row`` in the place of what they had for its kernel, architecture, dtypes and widths."""
    (arch,) = row["archs"]
    kept = []
    for old in rows:
        same = all(old[name] == row[name] for name in ("kernel", "widths", "dtypes")) and arch in old["archs"]
        archs = [name for name in old["archs"] if name != arch] if same else old["archs"]
        if archs:
            kept.append(old | {"archs": archs})
    return [*kept, row]


def wanted(kernel: str, widths: str) -> Iterator[tuple[str, Widths, tuple[torch.dtype, list[str]]]]:
    """Rows to fill: kernels whose name contains ``kernel``, of the widths written as ``widths`` ("" for all)."""
    for name, kind in itertools.product(CANDIDATES, (HALF, SINGLE)):
        for found in POOLING if name.startswith("pool") else INTERACTION:
            if kernel in name and widths in ("", ",".join(f"{k}={v}" for k, v in found.items())):
                yield name, found, kind


def main(arguments: list[str] | None = None) -> int:
    """Fill the table; 0 if every row that was asked for is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kernel", default="", help="only kernels whose name contains this")
    parser.add_argument("--widths", default="", help="only widths written so, as D=4096,H=32")
    parser.add_argument("--again", action="store_true", help="also rows that were timed on this GPU before")
    parser.add_argument("--minutes", type=float, default=20.0, help="time for everything (default: 20)")
    parser.add_argument("--table", type=Path, default=table.PATH, help="file to read and write")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, two candidates, with TRITON_INTERPRET=1")
    options = parser.parse_args(arguments)
    if options.smoke != interpreted():
        parser.error("--smoke and TRITON_INTERPRET=1 go together")
    timer, sizes = (Timer(), SMOKE) if options.smoke else (GpuTimer(), FULL)
    arch, device = (
        table.architecture(timer.device),
        "the interpreter" if options.smoke else torch.cuda.get_device_name(),
    )
    source = f"timed on {device}, torch {torch.__version__}, triton {triton.__version__}"
    deadline = time.monotonic() + 60 * options.minutes
    missing = 0
    for kernel, widths, (dtype, dtypes) in wanted(options.kernel, options.widths):
        head = {"kernel": kernel, "archs": [arch], "dtypes": dtypes, "widths": widths}
        rows = table.read(options.table)
        done = any(device in row["source"] and all(row[k] == v for k, v in head.items()) for row in rows)
        if done and not options.again:
            continue
        best = fastest(kernel, widths, dtype, timer, sizes, deadline)
        missing += best is None
        if best is not None:
            table.write(replaced(rows, head | {"tiles": best[1], "source": source}), options.table)
        timer.free()
    return int(missing > 0)


if __name__ == "__main__":
    sys.exit(main())
