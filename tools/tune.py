"""Time the candidate tiles of the Triton kernels on the GPU at hand, and keep the fastest right ones in the table.

    make tune                                   # everything that was not timed to the end on this GPU yet
    make tune ARGS='--kernel scores --again'    # one kernel, anew

A candidate is compiled, held against the reference, and timed with a cold L2 cache inside the call that uses it. Rows
take turns of a dozen candidates, those nearest to the best one so far first, until time is up: what is best by then is
in the table, marked as partial. What was tried is kept in a file, so that a run that is stopped in any way goes on
where it was.
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
from typing import Any, NamedTuple

import torch
import triton
from tqdm import tqdm

from d2llm_kernels.backends.triton import interpreted, table
from d2llm_kernels.measure.contract import Verdict
from d2llm_kernels.measure.lora import Layer
from d2llm_kernels.measure.problems import Interaction, Pool
from d2llm_kernels.measure.timing import GpuTimer, Timer
from tools.tried import FAILED, RIGHT, SLOWER, STARTED, WRONG, Tried

Widths = dict[str, int]
HALF, SINGLE = (torch.bfloat16, ["float16", "bfloat16"]), (torch.float32, ["float32"])

POOLING: tuple[Widths, ...] = ({"D": 576, "H": 9}, {"D": 1024, "H": 16}, {"D": 4096, "H": 32}, {"D": 8192, "H": 64})
INTERACTION: tuple[Widths, ...] = ({"F": 256}, {"F": 512}, {"F": 1024})
ADAPTED: tuple[Widths, ...] = ({"D": 4096, "R": 8},)
_WARPS, _STAGES = (4, 8), (2, 3, 4)
_PRODUCT = {"BLOCK_M": (64, 128), "BLOCK_N": (64, 128, 256), "BLOCK_K": (32, 64)}

# What is tried of each kernel, as products of these values.
CANDIDATES: dict[str, dict[str, tuple[int, ...]]] = {
    "pool_forward": {
        "BLOCK_L": (32, 64, 128), "BLOCK_D": (64, 128), "SLICE": (64, 128, 256), "SPLITS": (1, 2, 4, 8),
        "LAG": (0, 132, 264), "num_warps": (4,), "num_stages": (2, 3, 4),
    },
    "pool_products": {"BLOCK_L": (32, 64, 128), "BLOCK_D": (32, 64, 128), "num_warps": _WARPS, "num_stages": _STAGES},
    "pool_softmax": {"BLOCK_L": (32, 64, 128), "num_warps": _WARPS, "num_stages": (2,)},
    "pool_gradients": {"BLOCK_L": (32, 64), "SLICE": (64, 128, 256), "num_warps": _WARPS, "num_stages": _STAGES},
    **{
        kernel: {**_PRODUCT, "num_warps": _WARPS, "num_stages": _STAGES}
        for kernel in ("scores", "features", "slopes", "slopes_features", "inputs", "weights", "lora")
    },
}  # fmt: skip


# Candidates that a row tries before the next row has its turn.
TURN = 12
#: Where what was tried is kept unless another file is named.
TRIED = Path(".benchmarks/tried.jsonl")


class Row(NamedTuple):
    """A row to fill: a kernel and widths, the dtype that is timed and the dtypes that take its tiles."""

    kernel: str
    widths: Widths
    dtype: torch.dtype
    dtypes: list[str]

    @property
    def name(self) -> str:
        """Kernel, widths and the dtype that is timed."""
        return f"{self.kernel} {' '.join(f'{k}={v}' for k, v in self.widths.items())} {self._letters}"

    @property
    def _letters(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def head(self, arch: str) -> dict[str, Any]:
        """What tells the row in the table."""
        return {"kernel": self.kernel, "archs": [arch], "dtypes": self.dtypes, "widths": self.widths}

    def tried(self, path: Path, source: str) -> Tried:
        """What was tried of it."""
        head = {"kernel": self.kernel, "widths": self.widths, "dtype": self._letters, "source": source}
        return Tried(path, head)


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
    if "R" in widths:
        layer = Layer(device, dtype, sizes.batch * sizes.length, widths["D"], widths["D"], widths["R"])
        return Trial(partial(layer.both, "triton"), partial(layer.check, "triton", True))
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


def usual(row: Row, arch: str) -> table.Tiles:
    """What the row's kernel takes now, of all that candidates choose."""
    tiles = table.tiles(row.kernel, arch, row.dtype, **row.widths)
    return {name: tiles[name] for name in CANDIDATES[row.kernel]}


def candidates(row: Row, arch: str) -> list[table.Tiles]:
    """All tiles to try, the usual ones among them; in the interpreter, where time says nothing, two.

    Left out are blocks wider than the width, and of float32 those too deep for its error.
    """
    options = CANDIDATES[row.kernel]
    width = max(16, triton.next_power_of_2(row.widths.get("D", row.widths.get("F", 0))))
    found = [dict(zip(options, values, strict=True)) for values in itertools.product(*options.values())]
    wide = ("BLOCK_D", "SLICE", "BLOCK_N", "BLOCK_K")
    fitting = [tiles for tiles in found if all(tiles[name] <= width for name in wide if name in tiles)]
    if row.dtype == torch.float32:
        fitting = [tiles for tiles in fitting if table.depth(row.kernel, tiles) <= table.DEEPEST]
    if interpreted():
        return fitting[:2]
    now = usual(row, arch)
    return [now, *(tiles for tiles in fitting if tiles != now)]


def distance(kernel: str, tiles: table.Tiles, base: table.Tiles) -> int:
    """Steps between two candidates along the values of each option. The lag has none: it changes what no other does."""

    def place(name: str, value: int) -> int:
        values = CANDIDATES[kernel][name]
        return min(range(len(values)), key=lambda index: abs(values[index] - value))

    return sum(abs(place(name, value) - place(name, base[name])) for name, value in tiles.items() if name != "LAG")


def advance(
    row: Row, tried: Tried, timer: Timer, sizes: Sizes, deadline: float, most: int = TURN
) -> tuple[float, table.Tiles] | None:
    """Try more candidates of a row until ``deadline``, at most ``most``; the fastest right one of all that were tried.

    Raises:
        RuntimeError: if a candidate leaves the GPU unusable; it is noted as failed.
    """
    arch = table.architecture(timer.device)
    left = [tiles for tiles in candidates(row, arch) if not tried.done(tiles)]
    call = trial(row.kernel, row.widths, row.dtype, timer.device, sizes) if left else None
    now = usual(row, arch)
    for _ in tqdm(range(min(most, len(left))), desc=row.name, leave=False):
        if call is None or time.monotonic() > deadline:
            break
        best = tried.best()
        base = best[1] if best else now
        tiles = min(left, key=lambda one: distance(row.kernel, one, base))
        left.remove(tiles)
        tried.note(tiles, STARTED)
        with chosen(row.kernel, tiles):
            try:
                # Compiles; what needs more registers or shared memory than there are fails here.
                call.run()
                seconds = timer.sample(call.run).median_s
                outcome = SLOWER
                if best is None or seconds < best[0]:
                    outcome = RIGHT if call.check().passed else WRONG
                tried.note(tiles, outcome, seconds=seconds)
            except Exception as error:
                tqdm.write(f"{row.name} {tiles}: {type(error).__name__}")
                tried.note(tiles, FAILED, why=f"{type(error).__name__}: {error}"[:300])
                # Raises what a failed kernel left behind, before other candidates fail for its sake.
                timer.free()
    return tried.best()


def keep(row: Row, tried: Tried, arch: str, source: str, path: Path) -> bool:
    """Bring the table up to what was tried of a row; whether every candidate was."""
    every = candidates(row, arch)
    left = sum(not tried.done(tiles) for tiles in every)
    best = tried.best()
    if best is not None:
        made = row.head(arch) | {"tiles": best[1], "source": source}
        if left:
            made["partial"] = f"{len(every) - left} of {len(every)} candidates"
        table.write(replaced(table.read(path), made), path)
        print(f"{row.name}: {best[0] * 1e6:.1f} us with {best[1]}, {left} candidates left", flush=True)
    return not left


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


def wanted(kernel: str, widths: str) -> Iterator[Row]:
    """Rows to fill: kernels whose name contains ``kernel``, of the widths written as ``widths`` ("" for all)."""
    for (dtype, dtypes), name in itertools.product((HALF, SINGLE), CANDIDATES):
        for found in POOLING if name.startswith("pool") else ADAPTED if name == "lora" else INTERACTION:
            if kernel in name and widths in ("", ",".join(f"{k}={v}" for k, v in found.items())):
                yield Row(name, found, dtype, dtypes)


def origin(timer: Timer) -> str:
    """Where and with what figures come to be."""
    device = "the interpreter" if interpreted() else torch.cuda.get_device_name(timer.device)
    return f"timed on {device}, torch {torch.__version__}, triton {triton.__version__}"


def finished(row: Row, arch: str, device: str, path: Path) -> bool:
    """Whether the table has the row, timed to the end on this device."""
    head = row.head(arch)
    return any(
        device in old["source"] and "partial" not in old and all(old[name] == value for name, value in head.items())
        for old in table.read(path)
    )


def main(arguments: list[str] | None = None) -> int:
    """Fill the table; 0 unless there is a row without any right candidate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kernel", default="", help="only kernels whose name contains this")
    parser.add_argument("--widths", default="", help="only widths written so, as D=4096,H=32")
    parser.add_argument("--again", action="store_true", help="also rows that were timed on this GPU before")
    parser.add_argument("--minutes", type=float, default=9.0, help="time for everything (default: 9)")
    parser.add_argument("--table", type=Path, default=table.PATH, help="file to read and write")
    parser.add_argument("--tried", type=Path, default=TRIED, help=f"file of what was tried (default: {TRIED})")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, two candidates, with TRITON_INTERPRET=1")
    options = parser.parse_args(arguments)
    if options.smoke != interpreted():
        parser.error("--smoke and TRITON_INTERPRET=1 go together")
    deadline = time.monotonic() + 60 * options.minutes
    timer, sizes = (Timer(), SMOKE) if options.smoke else (GpuTimer(), FULL)
    arch, source = table.architecture(timer.device), origin(timer)
    device = source.removeprefix("timed on ").partition(",")[0]
    waiting, failed = [], 0
    for row in wanted(options.kernel, options.widths):
        tried = row.tried(options.tried, source)
        if options.again:
            tried.forget()
        if options.again or not finished(row, arch, device, options.table):
            waiting.append((row, tried))
    while waiting and time.monotonic() < deadline:
        turns, waiting = waiting, []
        for row, tried in turns:
            # Whoever has no turn any more is no worse off in the next run.
            best = advance(row, tried, timer, sizes, deadline) if time.monotonic() < deadline else tried.best()
            if not keep(row, tried, arch, source, options.table):
                waiting.append((row, tried))
            elif best is None:
                failed += 1
            timer.free()
    if waiting:
        print(f"{len(waiting)} rows are partial or had no turn; the same command goes on with them")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
