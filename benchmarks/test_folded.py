"""How much the folded algebra saves over the literal formulas, on this machine's CPU in float32."""

import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import d2llm_kernels as dk

HIDDEN, HEADS = 512, 32


def best(function: Callable[[], Tensor], rounds: int) -> float:
    """Shortest of ``rounds`` runs, in seconds."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


@pytest.fixture(scope="module")
def gemm_peak() -> float:
    """FLOP/s of torch's own float32 GEMM at the size that scoring runs on: the roofline of this run."""
    h, weight = torch.randn(1024, HIDDEN), torch.randn(HIDDEN, HIDDEN)
    return 2 * 1024 * HIDDEN**2 / best(lambda: h @ weight, 20)


def compare(benchmark, table, gemm_peak, name: str, literal, folded, flops: float, literal_flops: float) -> None:
    """Time both, check first that they agree, and record ratio, FLOPs and share of the GEMM's speed."""
    expected, got = literal(), folded()
    scale = expected.abs().max()
    assert (got - expected).abs().max() <= 1e-4 * scale
    slow = best(literal, 3)
    benchmark.pedantic(folded, rounds=5, warmup_rounds=1)
    fast = benchmark.stats.stats.min
    row = {
        "operation": name,
        "reference ms": f"{slow * 1e3:.1f}",
        "folded ms": f"{fast * 1e3:.2f}",
        "ratio": f"{slow / fast:.1f}",
        "FLOP ratio": f"{literal_flops / flops:.1f}",
        "GFLOP/s": f"{flops / fast / 1e9:.0f}",
        "% of GEMM": f"{100 * flops / fast / gemm_peak:.0f}",
    }
    benchmark.extra_info.update(row)
    table.append(row)


@pytest.mark.parametrize("dim", (1024, 4096))
@torch.no_grad()
def test_pma(benchmark, table, gemm_peak, dim):
    batch, length = 8, 256
    torch.manual_seed(0)
    folded, literal = (dk.PMA(dim, HEADS, init="xavier", backend=name) for name in ("folded", "reference"))
    literal.load_state_dict(folded.state_dict())
    x, mask = torch.randn(batch, length, dim), torch.arange(length) < torch.full((batch, 1), length)
    tokens, tail = batch * length, 4 * batch * dim**2
    compare(
        benchmark,
        table,
        gemm_peak,
        f"PMA B={batch} L={length} D={dim}",
        lambda: literal(x, mask),
        lambda: folded(x, mask),
        flops=4 * tokens * dim * HEADS + tail + 4 * dim**2,
        literal_flops=4 * tokens * dim**2 + 4 * tokens * dim + tail / 2,
    )


# The literal form holds several (pairs, 2D) tensors: 2 GB each at the second size.
@pytest.mark.parametrize(("dim", "queries", "passages"), ((1024, 32, 256), (1024, 64, 4096), (4096, 64, 1024)))
@torch.no_grad()
def test_score_all(benchmark, table, gemm_peak, dim, queries, passages):
    torch.manual_seed(0)
    folded, literal = (dk.IEM(dim, HIDDEN, init="xavier", backend=name) for name in ("folded", "reference"))
    literal.load_state_dict(folded.state_dict())
    q, p = torch.randn(queries, dim), torch.randn(passages, dim)
    pairs = queries * passages
    compare(
        benchmark,
        table,
        gemm_peak,
        f"score_all {queries} x {passages} D={dim}",
        lambda: literal.score_all(q, p, 1),
        lambda: folded.score_all(q, p, 1),
        flops=pairs * (2 * HIDDEN**2 + 4 * HIDDEN) + 2 * (queries + passages) * dim * HIDDEN,
        literal_flops=pairs * (4 * dim * HIDDEN + 4 * HIDDEN**2 + 2 * HIDDEN),
    )
