"""Time and peak memory of the losses over all pairs, forward and backward, on this machine's CPU in float32."""

import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import d2llm_kernels as dk


def peak_bytes(function: Callable[[], object]) -> int:
    """Most bytes of tensors that ``function`` holds at a time, beyond what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        function()
    changes = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@pytest.mark.parametrize(("batch", "hard"), ((512, 8), (512, 0)))
def test_in_batch_terms(benchmark, table, batch, hard):
    torch.manual_seed(0)
    z_in_batch, z_hard = torch.randn(batch, batch, requires_grad=True), torch.randn(batch, hard, requires_grad=True)
    teacher = (torch.rand(batch, hard), torch.rand(batch, batch), torch.rand(batch, batch) < 0.05)

    def step(backend: str) -> list[Tensor]:
        cross_entropy, pairwise = dk.functional.in_batch_terms(z_in_batch, z_hard, *teacher, backend=backend)
        total = cross_entropy.sum() + pairwise.sum()
        return [total.detach(), *torch.autograd.grad(total, (z_in_batch, z_hard))]

    for got, expected in zip(step("folded"), step("reference"), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        step("reference")
        times.append(time.perf_counter() - start)
    benchmark.pedantic(step, ("folded",), rounds=10, warmup_rounds=2)
    slow, fast = min(times), benchmark.stats.stats.min
    large, small = (peak_bytes(lambda name=name: step(name)) for name in ("reference", "folded"))
    row = {
        "operation": f"in_batch_terms B={batch} K={hard}, forward and backward",
        "reference ms": f"{slow * 1e3:.2f}",
        "folded ms": f"{fast * 1e3:.2f}",
        "ratio": f"{slow / fast:.1f}",
        "reference peak MiB": f"{large / 2**20:.2f}",
        "folded peak MiB": f"{small / 2**20:.2f}",
        "(B, B) MiB": f"{4 * batch**2 / 2**20:.2f}",
    }
    benchmark.extra_info.update(row)
    table.append(row)
