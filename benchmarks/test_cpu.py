"""The C++ kernels against this machine's limits, the folded form and the literal one, on the CPU.

A ceiling is measured in the same run: for arithmetic the larger of torch's GEMM and products in registers alone, for
memory a copy between tensors that exist already.
"""

import time
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as nnf
from torch import Tensor

import d2llm_kernels as dk
from d2llm_kernels import backends, cpu

pytestmark = pytest.mark.skipif(backends.missing("cpu") is not None, reason=str(backends.missing("cpu")))

F = 512
PAIR = 2 * F**2 + 4 * F
DTYPES = (torch.float32, torch.bfloat16)
Outputs = Tensor | tuple[Tensor, ...]


def best(function: Callable[[], object], seconds: float = 1.0) -> float:
    """Shortest of at least two runs, and of as many as ``seconds`` allow."""
    times: list[float] = []
    while len(times) < 2 or sum(times) < seconds:
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@pytest.fixture(scope="module")
def arithmetic(table) -> dict[torch.dtype, float]:
    """FLOP/s at most, by dtype."""
    peaks = {}
    for dtype in DTYPES:
        left, right = torch.randn(4096, F).to(dtype), torch.randn(F, F).to(dtype)
        gemm = 2 * 4096 * F**2 / best(partial(torch.matmul, left, right))
        registers = max(cpu.module().peak(name_of(dtype)) for _ in range(5))
        peaks[dtype] = max(gemm, registers)
        table.append(
            {
                "ceiling": name_of(dtype),
                "torch.matmul G/s": f"{gemm / 1e9:.0f}",
                "registers G/s": f"{registers / 1e9:.0f}",
            }
        )
    return peaks


@pytest.fixture(scope="module")
def memory(table) -> float:
    """Bytes a second of a copy, reads and writes counted."""
    source = torch.randn(1 << 26)
    target = torch.empty_like(source)
    speed = 2 * source.numel() * 4 / best(lambda: target.copy_(source))
    table.append({"ceiling": "memory", "copy GB/s": f"{speed / 1e9:.1f}"})
    return speed


def assert_near(got: Outputs, expected: Outputs, dtype: torch.dtype) -> None:
    """Within the rounding of sums in ``dtype``, by the norm; the contract proper is in the tests.

    Not entry by entry: of a hundred million hidden values some are so near 0 that the backends differ about the sign,
    and so in one pair's part of a gradient.
    """
    bound = 1e-4 if dtype == torch.float32 else 2e-2
    pairs = ((got, expected),) if isinstance(got, Tensor) else zip(got, expected, strict=True)
    for one, other in pairs:
        assert (one.double() - other.double()).norm() <= bound * other.double().norm()


def branch(dtype: torch.dtype) -> list[Tensor]:
    shapes = ((F, F), (F,), (1, F), (1,))
    return [(torch.randn(shape) / F**0.5).to(dtype) for shape in shapes]


def record(
    benchmark,
    table,
    function: Callable[[], Outputs],
    operation: str,
    dtype: torch.dtype,
    floor: float,
    **others: Callable[[], Outputs],
) -> None:
    """Time ``function`` and add its row.

    ``floor`` is its time at the nearer ceiling; of ``others`` the row gives how many times longer they take.
    """
    slower = {name: best(other) for name, other in others.items()}
    rounds = int(min(max(1.5 / best(function, 0.2), 3), 100))
    benchmark.pedantic(function, rounds=rounds, warmup_rounds=1)
    stats = benchmark.stats.stats
    row = {
        "operation": operation,
        "dtype": name_of(dtype),
        "ms": f"{stats.min * 1e3:.2f}",
        "median": f"{stats.median * 1e3:.2f}",
        "% of ceiling": f"{100 * floor / stats.min:.0f}",
    }
    row |= {f"{name} / cpu": f"{seconds / stats.min:.2f}" for name, seconds in slower.items()}
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
    ours, folded = (partial(dk.functional.iem_scores, *tensors, backend=name) for name in ("cpu", "folded"))
    floor = queries * passages * PAIR / arithmetic[dtype]
    record(benchmark, table, ours, f"iem_scores {queries} x {passages}", dtype, floor, folded=folded)


@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_backward(benchmark, table, arithmetic, dtype):
    torch.manual_seed(0)
    queries, passages = 64, 4096
    tensors = [torch.randn(queries, F).to(dtype), torch.randn(passages, F).to(dtype), *branch(dtype)]
    leaves = [tensor.requires_grad_() for tensor in tensors]

    def step(backend: str) -> Callable[[], Outputs]:
        z = dk.functional.iem_scores(*leaves, backend=backend)
        return partial(torch.autograd.grad, z, leaves, torch.ones_like(z), retain_graph=True)

    ours, folded = step("cpu"), step("folded")
    assert_near(ours(), folded(), dtype)
    # The hidden layer again, its gradient and the weight's: three products.
    floor = queries * passages * 6 * F**2 / arithmetic[dtype]
    record(benchmark, table, ours, f"iem_scores backward {queries} x {passages}", dtype, floor, folded=folded)


@torch.no_grad()
def test_scores_against_the_literal_form(benchmark, table, arithmetic):
    torch.manual_seed(0)
    dim, queries, passages = 4096, 64, 1024
    ours, literal = (dk.IEM(dim, F, init="xavier", backend=name) for name in ("cpu", "reference"))
    literal.load_state_dict(ours.state_dict())
    q, p = torch.randn(queries, dim), torch.randn(passages, dim)
    assert_near(ours.score_all(q, p, 1), literal.score_all(q, p, 1), torch.float32)
    flops = queries * passages * PAIR + 2 * (queries + passages) * dim * F
    record(
        benchmark,
        table,
        partial(ours.score_all, q, p, 1),
        f"IEM.score_all {queries} x {passages} D={dim}",
        torch.float32,
        flops / arithmetic[torch.float32],
        literal=partial(literal.score_all, q, p, 1),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backward", (False, True), ids=("forward", "backward"))
@pytest.mark.parametrize(("dim", "heads"), ((576, 9), (1024, 16), (4096, 32)))
def test_pooling(benchmark, table, arithmetic, memory, dim, heads, backward, dtype):
    torch.manual_seed(0)
    batch, length = 32, 256
    x = torch.randn(batch, length, dim).to(dtype).requires_grad_(backward)
    u = (torch.randn(heads, dim) / dim**0.5).to(dtype).requires_grad_(backward)

    def step(backend: str) -> Callable[[], Outputs]:
        if not backward:
            return partial(dk.functional.attn_pool, x, u, backend=backend)
        pooled = dk.functional.attn_pool(x, u, backend=backend)[0]
        return partial(torch.autograd.grad, pooled, (x, u), torch.ones_like(pooled), retain_graph=True)

    ours, folded = step("cpu"), step("folded")
    assert_near(ours(), folded(), dtype)
    tokens = batch * length
    # Backward: scores, dP·x, du and the two terms of dx; X is read and dX written.
    flops = (10 if backward else 4) * tokens * dim * heads
    moved = (2 if backward else 1) * tokens * dim * x.element_size()
    floor = max(flops / arithmetic[dtype], moved / memory)
    operation = f"attn_pool {'backward' if backward else 'forward'} D={dim} H={heads}"
    record(benchmark, table, ours, operation, dtype, floor, folded=folded)


@pytest.mark.parametrize(("dim", "heads"), ((1024, 16), (4096, 32)))
@torch.no_grad()
def test_pooling_against_the_literal_form(benchmark, table, arithmetic, dim, heads):
    torch.manual_seed(0)
    batch, length = 32, 256
    ours, literal = (dk.PMA(dim, heads, init="xavier", backend=name).eval() for name in ("cpu", "reference"))
    literal.load_state_dict(ours.state_dict())
    x = torch.randn(batch, length, dim)
    assert_near(ours(x), literal(x), torch.float32)
    # Pooling, fc_v and fc_o, and u from fc_q and fc_k.
    flops = 4 * batch * length * dim * heads + 4 * batch * dim**2 + 4 * dim**2
    floor = flops / arithmetic[torch.float32]
    record(
        benchmark, table, partial(ours, x), f"PMA D={dim} H={heads}", torch.float32, floor, literal=partial(literal, x)
    )


@pytest.mark.parametrize("dtype", DTYPES)
@torch.no_grad()
def test_topk(benchmark, table, arithmetic, dtype):
    torch.manual_seed(0)
    passages, k = 1_000_000, 100
    tensors = [torch.randn(1, F).to(dtype), torch.randn(passages, F, dtype=dtype), *branch(dtype)]
    scores = partial(dk.functional.iem_scores, *tensors, backend="cpu")
    topk = partial(dk.functional.iem_topk, *tensors, k, backend="cpu")
    z, (values, indices) = scores(), topk()
    assert torch.equal(values, z.topk(k).values) and torch.equal(values, z.gather(1, indices))
    floor = passages * PAIR / arithmetic[dtype]
    record(benchmark, table, topk, f"iem_topk 1 x {passages}", dtype, floor, scores=scores)


@torch.no_grad()
def test_topk_of_bytes(benchmark, table, arithmetic):
    torch.manual_seed(0)
    passages, k = 1_000_000, 100
    a, weights = torch.randn(1, F), branch(torch.float32)
    b = torch.randn(passages, F, dtype=torch.bfloat16)
    stored, scale = dk.int8.quantize(b)
    ours = partial(dk.int8.iem_topk, a, stored, scale, *weights, k, backend="cpu")
    half = [a.bfloat16(), b, *(tensor.bfloat16() for tensor in weights)]
    # The values of what was found are those of the stored passages, and what was found is the best of them.
    values, indices = ours()
    rows = stored[indices[0]].float() * scale[indices[0], None]
    assert_near(values, dk.functional.iem_scores(a, rows, *weights, backend="folded"), torch.float32)
    found = set(indices[0].tolist()) & set(dk.functional.iem_topk(*half, k, backend="cpu")[1][0].tolist())
    assert len(found) >= 0.9 * k
    floor = passages * PAIR / cpu.module().peak("int8")
    bfloat16 = partial(dk.functional.iem_topk, *half, k, backend="cpu")
    record(benchmark, table, ours, f"iem_topk 1 x {passages}", torch.int8, floor, bfloat16=bfloat16)


@pytest.mark.parametrize(
    ("rows", "depth", "outputs"), ((8192, 576, F), (1024, 4096, F), (32, 1024, 1024), (32, 4096, 4096))
)
@torch.no_grad()
def test_projections(benchmark, table, arithmetic, memory, rows, depth, outputs):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(rows, depth), torch.randn(outputs, depth), torch.randn(outputs)
    ours, torchs = partial(dk.functional.linear, x, weight, bias, "cpu"), partial(nnf.linear, x, weight, bias)
    assert_near(ours(), torchs(), torch.float32)
    flops, moved = 2 * rows * depth * outputs, 4 * (rows * depth + outputs * depth + rows * outputs)
    floor = max(flops / arithmetic[torch.float32], moved / memory)
    record(benchmark, table, ours, f"linear {rows} x {depth} -> {outputs}", torch.float32, floor, torch=torchs)
