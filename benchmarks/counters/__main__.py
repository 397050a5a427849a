"""Count, and compare with the baseline.

    make gate                                    # fails where something executes, allocates or launches more
    make gate ARGS=--update                      # what is counted now becomes the baseline
    make gate ARGS='--update --only launches'    # of one sort alone

Of the C++ kernels: instructions of one thread, for each instruction set that this processor has. Of every public
function: bytes allocated and the most held at once, forward and backward; kernels launched on a GPU, and all that the
host is asked for there. Of the folded forms: floating point operations. All of it is the same on every run of the same
build; timing has no part in it.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from benchmarks.counters import cases, instructions
from benchmarks.counters.launches import issued
from d2llm.files import read_json, write_json
from d2llm_kernels import backends
from d2llm_kernels.backends.cpu import library
from d2llm_kernels.measure.machine import installed
from d2llm_kernels.measure.memory import allocations, peak_bytes

BASELINE = Path(__file__).with_name("baseline.json")
#: Share of the baseline, and number beside it, by which a counter may move. Where memory lies decides some branches of
#: the allocator and of Python: a thousand instructions either way.
TOLERANCE = {
    "instructions": (0.01, 2500),
    "allocated bytes": (0.01, 0),
    "peak bytes": (0.01, 0),
    "FLOPs": (0.0, 0),
    "launches": (0.0, 0),
    "host operations": (0.0, 0),
}
_ISA = "D2LLM_KERNELS_ISA"
# Sets that are counted: the oldest with vectors and the newest; those between are made of the same templates.
_SETS = ("avx2", "avx512_bf16")

Counts = dict[str, dict[str, int]]


def count_instructions() -> Counts:
    """Of the kernels with the instruction set that this process runs on."""
    torch.manual_seed(0)
    kind = f"instructions, {library.module().build_info()['instruction_set']}"
    with tempfile.TemporaryDirectory() as folder:
        counter = instructions.Counter(Path(folder))
        return {kind: {case.name: counter.count(case.run) for case in cases.native()}}


def count_memory() -> Counts:
    """Of every backend for CPUs; what the C++ kernels keep beside their results depends on the instruction set."""
    found: Counts = {}
    for backend in ("cpu", "folded"):
        if backends.missing(backend):
            continue
        name = f"cpu {library.module().build_info()['instruction_set']}" if backend == "cpu" else backend
        torch.manual_seed(0)
        for case in cases.allocated(backend):
            # Gradients are allocated once and added to from then on.
            case.run()
            changes = allocations(case.run)
            found.setdefault(f"allocated bytes, {name}", {})[case.name] = sum(each for each in changes if each > 0)
            found.setdefault(f"peak bytes, {name}", {})[case.name] = peak_bytes(case.run)
    return found


def count_operations() -> Counts:
    """Of the folded forms."""
    found = {}
    for case in cases.multiplied():
        with FlopCounterMode(display=False) as counter:
            case.run()
        found[case.name] = counter.get_total_flops()
    return {"FLOPs, folded": found}


def count_launches() -> Counts:
    """Of the Triton kernels and what torch does around them."""
    found: Counts = {"launches, triton": {}, "host operations, triton": {}}
    for case in cases.issuing("triton"):
        passes = {}
        with issued() as passes["forward"]:
            out = case.run()
        if out[0].requires_grad:
            slopes = [torch.empty_like(each) for each in out]
            with issued() as passes["backward"]:
                torch.autograd.grad(out, case.leaves, slopes, allow_unused=True)
        for name, made in passes.items():
            found["launches, triton"][f"{case.name} {name}"] = made.launches
            found["host operations, triton"][f"{case.name} {name}"] = made.host_operations
    return found


def count_all_instructions() -> Counts:
    """Of the C++ kernels, with each of the sets in a process of its own."""
    found: Counts = {}
    sets = [name for name in _SETS if name in library.module().build_info()["available"]]
    with tempfile.TemporaryDirectory() as folder:
        for name in tqdm(sets, desc="instructions", unit="set"):
            # The set is chosen when the library is loaded.
            file = Path(folder) / f"{name}.json"
            environment = {**os.environ, _ISA: name, "OMP_NUM_THREADS": "1"}
            command = [sys.executable, "-m", "benchmarks.counters", "--instructions", str(file)]
            subprocess.run(command, env=environment, check=True)
            found |= read_json(file)
    return found


class Sort(NamedTuple):
    """What is counted in one way: how, and why it may not be possible here."""

    count: Callable[[], Counts]
    missing: Callable[[], str | None]


SORTS = {
    "memory": Sort(count_memory, lambda: None),
    "operations": Sort(count_operations, lambda: None),
    "launches": Sort(count_launches, lambda: None if installed("triton") else "Triton is not installed"),
    "instructions": Sort(count_all_instructions, lambda: library.missing() or instructions.missing()),
}


def count(sorts: Iterable[str]) -> tuple[Counts, list[str]]:
    """All of these sorts that can be counted here, and why the rest cannot."""
    torch.set_num_threads(1)
    found: Counts = {}
    notes = []
    for name in sorts:
        reason = SORTS[name].missing()
        if reason:
            notes.append(f"no {name}: {reason}")
        else:
            found |= SORTS[name].count()
    return found, notes


def built_with() -> dict[str, str | None]:
    """What counters depend on beside the sources."""
    compiler = None if library.missing() else library.module().build_info()["compiler"]
    return {"torch": torch.__version__.split("+")[0], "compiler": compiler}


def compare(baseline: dict[str, Any], counts: Counts, built: dict[str, str | None]) -> tuple[list[str], list[str]]:
    """What grew, and what else is to be said."""
    worse, notes = [], []
    for kind, found in counts.items():
        name, key = kind.split(",")[0], _depends_on(kind)
        if baseline["built_with"][key] != built[key]:
            notes.append(
                f"{kind}: not compared, the baseline is of {baseline['built_with'][key]}, this is {built[key]}"
            )
            continue
        share, number = TOLERANCE[name]
        known = baseline["counts"].get(kind)
        if known is None:
            notes.append(f"{kind}: not in the baseline")
            continue
        for case, value in found.items():
            before = known.get(case)
            if before is None:
                notes.append(f"{kind}, {case}: {value:,}, not in the baseline")
                continue
            slack = before * share + number
            if value > before + slack:
                worse.append(f"{kind}, {case}: {before:,} -> {value:,} ({100 * (value / before - 1):+.1f} %)")
            elif value < before - slack:
                notes.append(f"{kind}, {case}: {before:,} -> {value:,}, better; --update keeps it")
    return worse, notes


def updated(baseline: dict[str, Any], counts: Counts, built: dict[str, str | None]) -> dict[str, Any]:
    """The baseline with what was counted, and with what was not as it was, if it is of the same build."""
    kept = {
        kind: found
        for kind, found in baseline["counts"].items()
        if baseline["built_with"][_depends_on(kind)] == built[_depends_on(kind)]
    }
    return {"built_with": built, "counts": kept | counts}


def _depends_on(kind: str) -> str:
    return "compiler" if kind.startswith("instructions") else "torch"


def main(arguments: list[str] | None = None) -> int:
    """Run the program; 1 if a counter grew."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.counters", description=__doc__.splitlines()[0])
    parser.add_argument("--update", action="store_true", help="write the baseline")
    parser.add_argument("--only", choices=SORTS, action="append", help="this sort alone; may be given several times")
    parser.add_argument("--instructions", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.instructions:
        torch.set_num_threads(1)
        write_json(options.instructions, count_instructions())
        return 0
    sorts = options.only or list(SORTS)
    baseline, (counts, notes) = read_json(BASELINE), count(sorts)
    if options.update:
        new = updated(baseline, counts, built_with())
        write_json(BASELINE, new)
        for kind in baseline["counts"]:
            if kind not in counts:
                print(
                    f"{kind}: not counted, {'left as it was' if kind in new['counts'] else 'dropped, of another build'}"
                )
        print(f"written to {BASELINE}")
        return 0
    worse, more = compare(baseline, counts, built_with())
    if not options.only:
        more += [f"{kind}: not counted here" for kind in baseline["counts"] if kind not in counts]
    for line in (*notes, *more):
        print(line)
    for line in worse:
        print(f"GREW: {line}")
    compared = sum(map(len, counts.values()))
    print(f"{compared} counters, {len(worse)} grew")
    return int(bool(worse))


if __name__ == "__main__":
    sys.exit(main())
