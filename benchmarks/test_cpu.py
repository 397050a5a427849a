"""The C++ kernels against this machine's limits, the folded form and the literal one, on the CPU.

A ceiling is measured in the same run: for arithmetic the larger of torch's GEMM and products in registers alone, for
memory a copy.
"""

import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import d2llm_kernels as dk
from d2llm_kernels import backends, cpu

pytestmark = pytest.mark.skipif(backends.missing("cpu") is not None, reason=str(backends.missing("cpu")))

F = 512
DTYPES = (torch.float32, torch.bfloat16)


def best(function: Callable[[], object], rounds: int = 3) -> float:
    """Shortest of ``rounds`` runs after one that does not count, in seconds."""
    function()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


@pytest.fixture(scope="module")
def arithmetic() -> dict[torch.dtype, float]:
    """FLOP/s at most, by dtype."""
    peaks = {}
    for dtype in DTYPES:
        left, right = torch.randn(4096, F).to(dtype), torch.randn(F, F).to(dtype)
        gemm = 2 * 4096 * F**2 / best(lambda left=left, right=right: left @ right, 10)
        peaks[dtype] = max(gemm, *(cpu.module().peak(str(dtype).removeprefix("torch.")) for _ in range(3)))
    return peaks


@pytest.fixture(scope="module")
def memory() -> float:
    """Bytes a second of a copy, reads and writes counted."""
    source = torch.randn(1 << 26)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / best(lambda: target.copy_(source), 5)


def assert_near(got: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Within the rounding of sums in ``dtype``; the contract proper is in the tests."""
    bound = 1e-4 if dtype == torch.float32 else 3e-2
    assert (got.double() - expected.double()).abs().max() <= bound * expected.double().abs().max()


def branch(dtype: torch.dtype) -> list[Tensor]:
    shapes = ((F, F), (F,), (1, F), (1,))
    return [(torch.randn(shape) / F**0.5).to(dtype) for shape in shapes]


def record(benchmark, table, function, name: str, dtype: torch.dtype, floor: float, **others: float) -> None:
    """Time ``function`` and add its row; ``floor`` is its time at the nearer ceiling, ``others`` those of others."""
    benchmark.pedantic(function, rounds=3, warmup_rounds=1)
    taken = benchmark.stats.stats.min
    row = {
        "operation": name,
        "dtype": str(dtype).removeprefix("torch."),
        "cpu ms": f"{taken * 1e3:.2f}",
        "% of ceiling": f"{100 * floor / taken:.0f}",
    }
    row |= {f"{name} / cpu": f"{value / taken:.2f}" for name, value in others.items()}
    benchmark.extra_info.update(row)
    table.append(row)


@pytest.mark.parametrize("dtype", DTYPES)
@torch.no_grad()
def test_scores(benchmark, table, arithmetic, dtype):
    torch.manual_seed(0)
    queries, passages = 64, 16384
    tensors = [torch.randn(queries, F).to(dtype), torch.randn(passages, F).to(dtype), *branch(dtype)]
    few = [tensors[0], tensors[1][:256], *tensors[2:]]
    exact = dk.functional.iem_scores(*(t.double() for t in few), backend="reference")
    assert_near(dk.functional.iem_scores(*few, backend="cpu"), exact, dtype)
    pairs = queries * passages
    folded = best(lambda: dk.functional.iem_scores(*tensors, backend="folded"), 2)
    record(
        benchmark,
        table,
        lambda: dk.functional.iem_scores(*tensors, backend="cpu"),
        f"iem_scores {queries} x {passages}",
        dtype,
        pairs * (2 * F**2 + 4 * F) / arithmetic[dtype],
        folded=folded,
    )


@torch.no_grad()
def test_scores_against_the_literal_form(benchmark, table, arithmetic):
    torch.manual_seed(0)
    dim, queries, passages = 4096, 64, 256
    ours, literal = (dk.IEM(dim, F, init="xavier", backend=name) for name in ("cpu", "reference"))
    literal.load_state_dict(ours.state_dict())
    q, p = torch.randn(queries, dim), torch.randn(passages, dim)
    assert_near(ours.score_all(q, p, 1), literal.score_all(q, p, 1), torch.float32)
    flops = queries * passages * (2 * F**2 + 4 * F) + 2 * (queries + passages) * dim * F
    record(
        benchmark,
        table,
        lambda: ours.score_all(q, p, 1),
        f"score_all {queries} x {passages} D={dim}",
        torch.float32,
        flops / arithmetic[torch.float32],
        literal=best(lambda: literal.score_all(q, p, 1), 1),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backward", (False, True), ids=("forward", "backward"))
@pytest.mark.parametrize(("dim", "heads"), ((576, 9), (1024, 16), (4096, 32)))
def test_pooling(benchmark, table, arithmetic, memory, dim, heads, backward, dtype):
    torch.manual_seed(0)
    batch, length = 32, 256
    x = torch.randn(batch, length, dim).to(dtype).requires_grad_(backward)
    u = (torch.randn(heads, dim) / dim**0.5).to(dtype).requires_grad_(backward)

    def step(backend: str) -> Callable[[], tuple[Tensor, ...]]:
        if not backward:
            return lambda: dk.functional.attn_pool(x, u, backend=backend)
        pooled = dk.functional.attn_pool(x, u, backend=backend)[0]
        slope = torch.ones_like(pooled)
        return lambda: torch.autograd.grad(pooled, (x, u), slope, retain_graph=True)

    ours, folded = step("cpu"), step("folded")
    for got, expected in zip(ours(), folded(), strict=True):
        assert_near(got, expected, dtype)
    tokens = batch * length
    # Backward: scores, dP·x, du and the two terms of dx; X is read and dX written.
    flops = (10 if backward else 4) * tokens * dim * heads
    moved = (2 if backward else 1) * tokens * dim * x.element_size()
    floor = max(flops / arithmetic[dtype], moved / memory)
    name = f"attn_pool D={dim} H={heads} {'backward' if backward else 'forward'}"
    record(benchmark, table, ours, name, dtype, floor, folded=best(folded, 2))


@pytest.mark.parametrize("dtype", DTYPES)
@torch.no_grad()
def test_topk(benchmark, table, arithmetic, dtype):
    torch.manual_seed(0)
    passages, k = 1_000_000, 100
    tensors = [torch.randn(1, F).to(dtype), torch.randn(passages, F, dtype=dtype), *branch(dtype)]
    scores = dk.functional.iem_scores(*tensors, backend="cpu")
    values, indices = dk.functional.iem_topk(*tensors, k, backend="cpu")
    assert torch.equal(values, scores.topk(k).values) and torch.equal(values, scores.gather(1, indices))
    record(
        benchmark,
        table,
        lambda: dk.functional.iem_topk(*tensors, k, backend="cpu"),
        f"iem_topk 1 x {passages}",
        dtype,
        passages * (2 * F**2 + 4 * F) / arithmetic[dtype],
        scores=best(lambda: dk.functional.iem_scores(*tensors, backend="cpu"), 2),
    )
