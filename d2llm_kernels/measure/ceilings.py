"""The rates that nothing on this machine beats by much: copying memory, and multiplying."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch

from d2llm_kernels.backends.cpu import library
from d2llm_kernels.measure.timing import Timer

#: Bounds that a floor names.
ARITHMETIC, MEMORY = "arithmetic", "memory"

# Names of the products measured: dtype, and whether float32 may be rounded to tf32.
_ON_GPU = {
    "bfloat16": (torch.bfloat16, False),
    "float16": (torch.float16, False),
    "float32": (torch.float32, False),
    "tf32": (torch.float32, True),
}
_ON_CPU = ("float32", "bfloat16")
# The shape that scoring multiplies at: rows of pairs by the weight of a branch.
_CPU_ROWS, _CPU_WIDTH = 4096, 512
# The fastest of several runs: a ceiling is what the machine can do.
_TRIES = 5


@dataclass
class Ceilings:
    """Bytes read plus written in a second by a copy, and operations in a second of a product, by dtype.

    ``gemm`` is the part of ``products`` that torch's own product reaches, where something else reaches more.
    """

    copy: float
    products: dict[str, float] = field(default_factory=dict)
    gemm: dict[str, float] = field(default_factory=dict)

    def floor(self, dtype: torch.dtype, flops: float, traffic: float) -> tuple[float, str]:
        """Seconds that work takes at the ceilings, and which of them is the nearer one."""
        arithmetic = flops / self.products[str(dtype).removeprefix("torch.")]
        memory = traffic / self.copy
        return (memory, MEMORY) if memory >= arithmetic else (arithmetic, ARITHMETIC)

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def measure(timer: Timer, copied_bytes: int = 1 << 28, size: int = 8192) -> Ceilings:
    """Time a copy of ``copied_bytes`` and products in each dtype, on random numbers.

    On a GPU the products are square, of ``size``. On a CPU they have the shape of scoring, and products in registers
    alone count too, since they are more than torch reaches in float32.
    """
    source = torch.randn(copied_bytes // 4, device=timer.device)
    target = torch.empty_like(source)
    copied = timer.sample(lambda: target.copy_(source))
    on_gpu = timer.device.type == "cuda"
    ceilings = Ceilings(2 * 4 * source.numel() / (copied.median_s if on_gpu else copied.low_s))
    if on_gpu:
        _on_gpu(timer, size, ceilings)
    else:
        _on_cpu(timer, ceilings)
    timer.free()
    return ceilings


def _on_gpu(timer: Timer, size: int, ceilings: Ceilings) -> None:
    for name, (dtype, tf32) in _ON_GPU.items():
        left, right = (torch.randn(size, size, device=timer.device, dtype=dtype) for _ in range(2))
        out = torch.empty_like(left)
        with _tf32(tf32):
            sample = timer.sample(partial(torch.mm, left, right, out=out))
        ceilings.products[name] = 2 * size**3 / sample.median_s


def _on_cpu(timer: Timer, ceilings: Ceilings) -> None:
    for name in _ON_CPU:
        dtype = getattr(torch, name)
        left, right = torch.randn(_CPU_ROWS, _CPU_WIDTH).to(dtype), torch.randn(_CPU_WIDTH, _CPU_WIDTH).to(dtype)
        sample = timer.sample(partial(torch.mm, left, right))
        ceilings.gemm[name] = 2 * _CPU_ROWS * _CPU_WIDTH**2 / sample.low_s
        ceilings.products[name] = max(ceilings.gemm[name], _registers(name))
    # Nothing in torch multiplies bytes on a CPU at a rate to compare with; without the kernels float32 stands in.
    ceilings.products["int8"] = _registers("int8") or ceilings.products["float32"]


def _registers(name: str) -> float:
    return 0.0 if library.missing() else max(library.module().peak(name) for _ in range(_TRIES))


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
