"""Test and time every kernel on the GPU at hand, and write what was found.

    make gpu-report ARGS='--stage 1'         # build, a launch of every kernel, copy and L2 rates, parity
    make gpu-report ARGS='--stage 2'         # the rows
    make gpu-report ARGS='--stage 3'         # sanitizers, lags, candidate tiles
    make gpu-report                          # all that fits nine minutes; again: what did not
    make gpu-report ARGS='--only iem_topk'   # rows whose name contains this
    python -m benchmarks.gpu_report --smoke  # tiny sizes on the CPU, with TRITON_INTERPRET=1

Each call ends in under ten minutes and goes on where earlier ones with the same folder stopped, however they did.
"""

import argparse
import os
import signal
import sys
from pathlib import Path

import torch

from benchmarks.gpu_report import writing
from benchmarks.gpu_report.children import ROOT
from benchmarks.gpu_report.plan import STAGES, Plan
from benchmarks.gpu_report.report import Report
from benchmarks.gpu_report.state import Values, load
from d2llm_kernels.backends.triton import interpreted
from d2llm_kernels.measure import machine
from d2llm_kernels.measure.timing import GpuTimer, Timer

_FOLDER = ROOT / "benchmarks/results"
# Exit status where the GPU was lost and there was no time to start again.
_LOST = 3


def main(arguments: list[str] | None = None) -> int:
    """Run the program; 0 if the tests and every check passed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_report", description=__doc__.splitlines()[0])
    parser.add_argument("--stage", type=int, choices=STAGES, help="one of three calls that make a whole report")
    parser.add_argument("--minutes", type=float, default=9.0, help="time for this call (default: 9)")
    parser.add_argument("--only", default="", help="only rows whose name contains this, without the rest")
    parser.add_argument(
        "--out", type=Path, help="folder that everything goes below (default: benchmarks/results/<GPU>)"
    )
    parser.add_argument("--again", action="store_true", help="forget what earlier calls found")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes on the CPU; needs TRITON_INTERPRET=1")
    options = parser.parse_args(arguments)
    if options.smoke != interpreted():
        parser.error("--smoke and TRITON_INTERPRET=1 go together: timing the interpreter says nothing")
    if not options.smoke and not torch.cuda.is_available():
        parser.error("torch sees no GPU")
    timer = Timer(fewest=1, most=1) if options.smoke else GpuTimer()
    device = machine.processor() if options.smoke else torch.cuda.get_device_name(timer.device)
    folder = options.out or _FOLDER / machine.slug({"device": device})
    if not options.smoke:
        for variable in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"):
            os.environ.setdefault(variable, str((folder / "work/cache" / variable.lower()).absolute()))
    values = load(folder, device, options.smoke, options.again)
    plan = Plan(values, timer, folder, 60 * options.minutes, options.smoke, options.only)

    def start_again(minutes: float) -> None:
        if not minutes:
            print(f"the GPU is lost; what was found is in {folder}, and the same command goes on", flush=True)
            os._exit(_LOST)
        command = [sys.executable, "-m", "benchmarks.gpu_report", "--minutes", str(minutes), "--out", str(folder)]
        command += ["--only", options.only] + ["--smoke"] * options.smoke
        command += [] if options.stage is None else ["--stage", str(options.stage)]
        os.execv(sys.executable, command)

    Report(values, timer, folder, plan, start_again).run(options.stage)
    print(writing.short(values))
    print(f"written to {folder}")
    return int(_wrong(values))


def _wrong(values: Values) -> bool:
    """Whether a test or a check failed."""
    variants = [found for row in values["rows"] for found in row["variants"].values()]
    checks = (values["tests"] or {}, *values["sanitizers"].values())
    return (
        any(found.get("failure", "").startswith("wrong") for found in variants)
        or any(check.get("outcome") == "failed" for check in checks)
        or not all(launch["right"] for launch in values["launches"].values())
    )


if __name__ == "__main__":
    # Ends children on the way.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    sys.exit(main())
