"""The two rates that nothing here can beat by much: copying memory and multiplying matrices."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from benchmarks.gpu_report.timing import Timer

# Names of the products measured: dtype, and whether float32 may be rounded to tf32.
_PRODUCTS = {
    "bfloat16": (torch.bfloat16, False),
    "float16": (torch.float16, False),
    "float32": (torch.float32, False),
    "tf32": (torch.float32, True),
}


@dataclass
class Ceilings:
    """Bytes read plus written in a second by a copy, and operations in a second of a product, by dtype."""

    copy: float
    products: dict[str, float] = field(default_factory=dict)

    def floor(self, dtype: torch.dtype, flops: float, traffic: float) -> tuple[float, str]:
        """Seconds that work takes at the ceilings, and which of them is the nearer one."""
        arithmetic = flops / self.products[str(dtype).removeprefix("torch.")]
        memory = traffic / self.copy
        return (memory, "copy") if memory >= arithmetic else (arithmetic, "GEMM")

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def measure(timer: Timer, copied_bytes: int, size: int) -> Ceilings:
    """Time a copy of ``copied_bytes`` and square products of ``size`` in each dtype, on random numbers."""
    source = torch.randn(copied_bytes // 4, device=timer.device)
    target = torch.empty_like(source)
    ceilings = Ceilings(2 * 4 * source.numel() / timer.sample(lambda: target.copy_(source)).median_s)
    for name, (dtype, tf32) in _PRODUCTS.items():
        left, right = (torch.randn(size, size, device=timer.device, dtype=dtype) for _ in range(2))
        out = torch.empty_like(left)
        with _tf32(tf32):
            sample = timer.sample(lambda left=left, right=right, out=out: torch.mm(left, right, out=out))
        ceilings.products[name] = 2 * size**3 / sample.median_s
    timer.free()
    return ceilings


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
