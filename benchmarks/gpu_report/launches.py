"""Every kernel once, on small inputs, judged: the first thing to know of a GPU, and what runs under sanitizers.

python -m benchmarks.gpu_report.launches          # a line for each
python -m benchmarks.gpu_report.launches --few    # six of the CUDA kernels, those for Hopper GPUs among them
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch

from benchmarks.backend import chosen
from benchmarks.gpu_report import experimental
from d2llm_kernels.backends import unsupported
from d2llm_kernels.backends.cuda import library
from d2llm_kernels.measure.contract import Verdict, worst
from d2llm_kernels.measure.in_batch import losses
from d2llm_kernels.measure.lora import Layer
from d2llm_kernels.measure.problems import Interaction, Pool, TopK

_DTYPE = torch.bfloat16
# One tile and a bit of each dimension. The kernels for Hopper GPUs want widths of 64 and 128.
_TEXTS, _TOKENS, _WIDTH, _HEADS = 3, 70, 64, 4
_QUERIES, _PASSAGES, _HIDDEN = 3, 40, 128


class Launch(NamedTuple):
    """Kernels to launch once, and the judge of what they give; ``few`` are enough for a slow tool."""

    name: str
    judge: Callable[[], Verdict]
    few: bool = False


def launches(device: torch.device) -> Iterator[Launch]:
    """What can be launched here."""
    here = [name for name in ("triton", "cuda") if unsupported(name, "iem_scores", device, _DTYPE) is None]
    for backend in here:
        yield from _of(backend, device)
    # The CUDA kernels take a CPU's tensors in the emulation alone, which runs those for Hopper GPUs too.
    if "cuda" in here and (device.type == "cpu" or experimental.available(device)):
        yield from _hopper(device)


def few(device: torch.device) -> list[Launch]:
    """Those of the CUDA kernels, or where there are none of Triton's."""
    some = [launch for launch in launches(device) if launch.few]
    of_cuda = [launch for launch in some if launch.name.startswith("cuda")]
    return of_cuda or some


def _of(backend: str, device: torch.device) -> Iterator[Launch]:
    for kind in ("whole", "masked", "packed"):
        yield Launch(f"{backend} attn_pool {kind}", partial(_pooled, backend, device, kind), kind == "packed")
    yield Launch(f"{backend} iem_scores", partial(_scored, backend, device, False), True)
    yield Launch(f"{backend} iem_pairs", partial(_scored, backend, device, True), True)
    yield Launch(f"{backend} iem_topk", partial(_selected, backend, device))
    if backend == "triton":
        yield Launch(f"{backend} in_batch_terms", lambda: losses(18, 2).prepare(device).check(backend))
        yield Launch(f"{backend} lora_linear", lambda: Layer(device, _DTYPE, 18, 20, 24, 4).check(backend, True))


def _hopper(device: torch.device) -> Iterator[Launch]:
    def experimentally(kernel: str, judge: Callable[[], Verdict]) -> Verdict:
        with library.experimental(), chosen("cuda"):
            before = library.module().launches()[kernel]
            verdict = judge()
            # Shapes that a kernel does not take go to the one for every GPU.
            if library.module().launches()[kernel] == before:
                raise RuntimeError(f"{kernel} did not run")
            return verdict

    pool = partial(_pool, device, "packed")
    texts = partial(Interaction, device, _DTYPE, _QUERIES, _PASSAGES, _HIDDEN)
    for name, kernel, judge in (
        ("attn_pool", "hopper_pool_forward", lambda: pool().check("cuda", False)),
        ("iem_scores", "hopper_iem_scores", lambda: texts().check("cuda", False)),
        ("fp8", "hopper_iem_scores_fp8", lambda: texts().check_fp8()),
    ):
        yield Launch(f"{experimental.HOPPER} {name}", partial(experimentally, kernel, judge), True)


def _pool(device: torch.device, kind: str) -> Pool:
    return Pool(device, _DTYPE, _TEXTS, _TOKENS, _WIDTH, _HEADS, kind)


def _pooled(backend: str, device: torch.device, kind: str) -> Verdict:
    problem = _pool(device, kind)
    return worst(problem.check(backend, gradients) for gradients in (False, True))


def _scored(backend: str, device: torch.device, paired: bool) -> Verdict:
    queries = _PASSAGES if paired else _QUERIES
    problem = Interaction(device, _DTYPE, queries, _PASSAGES, _HIDDEN, paired=paired, features=paired)
    return worst(problem.check(backend, gradients) for gradients in (False, True))


def _selected(backend: str, device: torch.device) -> Verdict:
    return TopK(device, _DTYPE, 2, 300, _HIDDEN, 5).check(backend)


def say(launch: Launch) -> tuple[bool, str]:
    """Launch; whether the result is right, and a line about it."""
    try:
        verdict = launch.judge()
    except Exception as error:
        return False, f"{launch.name}: {type(error).__name__}: {error}".splitlines()[0][:300]
    word = "right" if verdict.passed else "WRONG"
    return verdict.passed, f"{launch.name}: {word}, {verdict}"


def main(arguments: list[str] | None = None) -> int:
    """Run the program; 0 if every result is right."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--few", action="store_true", help="six of the CUDA kernels, else three of Triton's")
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    wanted, wrong = few(device) if options.few else list(launches(device)), 0
    for launch in wanted:
        right, line = say(launch)
        wrong += not right
        print(line, flush=True)
    print(f"{len(wanted)} launched, {wrong} wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
