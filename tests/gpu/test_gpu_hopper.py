"""The CUDA kernels for compute capability 9.0, there or in the emulation; gradients are the portable kernels'."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import torch

import d2llm_kernels as dk
from d2llm_kernels import backends, reference
from d2llm_kernels.backends.cuda import library, pooling
from d2llm_kernels.backends.gpu import topk
from d2llm_kernels.rough import fp8
from tests.contract import assert_parity, assert_within, guarded, poisoned
from tests.gpu.conftest import BACKENDS, EMULATED, FLOAT16, ON_GPU

HOPPER = "cuda" in BACKENDS and (EMULATED or (ON_GPU and torch.cuda.get_device_capability() == (9, 0)))
pytestmark = pytest.mark.skipif(not HOPPER, reason="needs compute capability 9.0, or the emulation")

DTYPES = (torch.bfloat16, torch.float16)
SCORES, SCORES_FP8, POOL = "hopper_iem_scores", "hopper_iem_scores_fp8", "hopper_pool_forward"
# The units sum products of e4m3 with fewer bits than float32 has, which the emulation does not imitate.
FP8_ERROR = 2e-6 if EMULATED else 2e-3
SCHEDULES = [
    (order, copies, products)
    for order in ("forward", "reverse", "skewed", "7")
    for copies, products in (("late", "late"), ("eager", "late"), ("eager", "eager"))
]
# Each order, and each time at which copies and products are done.
SOME_SCHEDULES = [SCHEDULES[number] for number in (0, 1, 2, 4, 8, 9)]


@pytest.fixture(autouse=True)
def experimental(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(backends.ENVIRONMENT, "cuda")
    with library.experimental():
        yield


@contextmanager
def runs(*kernels: str) -> Iterator[None]:
    """What is inside must launch these kernels and no others: shapes that they do not take go elsewhere unnoticed."""
    before = library.module().launches()
    yield
    launched = {name for name, count in library.module().launches().items() if count > before[name]}
    assert launched == set(kernels)


def scores(*tensors):
    return (dk.functional.iem_scores(*tensors),)


def plain_scores(*tensors):
    return (reference.iem_scores(*tensors),)


def pool(x, u, **where):
    return dk.functional.attn_pool(x, u, **where)


def assert_forward_parity(kernel, plain, tensors, dtype):
    """The contract, for outputs alone."""
    inputs = [tensor.to(dtype) for tensor in tensors]
    with torch.no_grad(), poisoned():
        got = kernel(*map(guarded, inputs))
    for one, same, exact in zip(got, plain(*inputs), plain(*(t.double() for t in inputs)), strict=True):
        assert_within(one, same, exact, dtype)


def assert_equal(one, two):
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("queries,passages", [(1, 1), (1, 130), (3, 1), (3, 300), (9, 130), (9, 300)])
def test_scores_parity(make_pairs, queries, passages, dtype):
    with runs(SCORES):
        assert_forward_parity(scores, plain_scores, make_pairs(queries, passages, 128), dtype)


# F = 256 is where the warpgroup that leads could come by a second time before the other one has started.
@pytest.mark.parametrize("dtype", (torch.bfloat16, FLOAT16))
@pytest.mark.parametrize(
    "queries,passages,hidden", [(20, 200, 256), (3, 130, 384), (2, 130, 512), (1, 300, 768), (9, 40, 768), (2, 9, 1024)]
)
def test_scores_parity_of_wider_branches(make_pairs, queries, passages, hidden, dtype):
    with runs(SCORES):
        assert_forward_parity(scores, plain_scores, make_pairs(queries, passages, hidden), dtype)


def test_gradients_are_those_of_the_portable_kernels(make_pairs, make_tokens):
    with runs(SCORES, "iem_slopes", "iem_inputs", "iem_weights"):
        assert_parity(scores, plain_scores, make_pairs(3, 20, 128), torch.bfloat16)
    x, u, mask = make_tokens(2, 20, 64, 4)
    with runs(POOL, "pool_products", "pool_softmax", "pool_gradients"):
        assert_parity(partial(pool, mask=mask), partial(reference.attn_pool, mask=mask), (x, u), torch.bfloat16)


@pytest.mark.parametrize("hidden", (128, 512, 768))
def test_a_score_does_not_depend_on_place_or_neighbours(make_pairs, hidden):
    a, b, *weights = make_pairs(3, 1, hidden, torch.bfloat16)
    with runs(SCORES):
        alone = scores(a, b, *weights)[0]
    crowd = torch.cat([b.expand(70, -1), torch.randn_like(b.expand(7, -1))])
    crowd[71] = math.nan
    got = scores(torch.cat([a, a, a]), crowd, *weights)[0]
    assert torch.equal(got[:, :70], alone.repeat(3, 1).expand(-1, 70))
    assert got[:, 71].isnan().all() and not got[:, 72:].isnan().any()
    assert torch.equal(scores(a[1:2], b, *weights)[0], alone[1:2])


@pytest.mark.parametrize("queries,k,hidden", [(1, 1, 128), (3, 20, 256), (2, 300, 768)])
def test_topk_is_exact_and_ties_take_the_lower_index(make_pairs, monkeypatch, queries, k, hidden):
    monkeypatch.setattr(topk, "_TOPK_BYTES", 8 * queries * 160)
    a, b, *weights = make_pairs(queries, 300, hidden, torch.bfloat16)
    b[100:200] = b[:100]
    b[7] = math.nan
    with runs(SCORES):
        values, indices = dk.functional.iem_topk(a, b, *weights, k)
    assert_equal((values, indices), reference.topk(scores(a, b, *weights)[0], k))


@pytest.mark.parametrize(
    "queries,passages,hidden", [(1, 1, 128), (3, 300, 128), (9, 130, 256), (3, 70, 384), (2, 130, 512)]
)
def test_fp8_scores_are_those_of_the_formula(make_pairs, queries, passages, hidden):
    a, b, weight, *vectors = (t.bfloat16().float() for t in make_pairs(queries, passages, hidden))
    weight, scale = fp8.quantize(weight)
    a[0] *= 2.0**-100
    b[0] *= 2.0**60
    branch = (weight, scale, *vectors)
    with runs(SCORES_FP8):
        got = fp8.iem_scores(a, b, *branch, backend="cuda")
    expected = fp8.iem_scores(a, b, *branch, backend="reference")
    largest = expected.abs().amax(0)
    assert ((got - expected).abs() <= FP8_ERROR * math.sqrt(hidden) * largest).all()


def test_fp8_scores_of_what_is_not_finite_are_nan(make_pairs):
    a, b, weight, *vectors = make_pairs(3, 140, 128, torch.float32)
    b[4, 3], b[6, 1], b[139, 127] = math.inf, math.nan, math.inf
    b[9] = -math.inf
    with runs(SCORES_FP8):
        z = fp8.iem_scores(a, b, *fp8.quantize(weight), *vectors, backend="cuda")
    assert z.isnan().nonzero()[:, 1].tolist() == [4, 6, 139] * 3


def test_fp8_topk_is_ranked_by_the_kernel_for_pairs(make_pairs):
    a, b, *branch = make_pairs(2, 400, 128, torch.float32)
    with runs(SCORES_FP8, "iem_scores"):
        values, indices = fp8.iem_topk(a, b, branch, 10, backend="cuda")
    expected = dk.functional.iem_topk(a, b, *branch, 10)
    assert torch.equal(indices, expected[1])
    torch.testing.assert_close(values, expected[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", (torch.bfloat16, FLOAT16))
@pytest.mark.parametrize(
    "batch,length,dim,heads",
    [(1, 1, 64, 1), (2, 63, 64, 9), (5, 33, 576, 32), (3, 50, 1024, 40), (2, 40, 2048, 9), (2, 70, 4096, 32)],
)
def test_pool_parity(make_tokens, batch, length, dim, heads, dtype):
    x, u, mask = make_tokens(batch, length, dim, heads)
    for kept in (None, mask):
        with runs(POOL):
            assert_forward_parity(partial(pool, mask=kept), partial(reference.attn_pool, mask=kept), (x, u), dtype)


# Clusters of 1, 2, 3, 4, 5, 5, 6, 7 and 8 blocks.
@pytest.mark.parametrize(
    "dim,heads",
    [(896, 16), (1536, 12), (3072, 24), (3584, 28), (5120, 40), (5120, 8), (6144, 48), (7168, 16), (8192, 64)],
)
def test_pool_parity_at_the_widths_of_llms(make_tokens, dim, heads):
    x, u, mask = make_tokens(1, 18, dim, heads)
    with runs(POOL):
        assert_forward_parity(partial(pool, mask=mask), partial(reference.attn_pool, mask=mask), (x, u), torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim,heads", [(64, 4), (2048, 33)])
def test_pool_parity_packed_with_empty_sequences(make_tokens, dim, heads, dtype):
    x, u, _ = make_tokens(1, 70, dim, heads)
    cu = torch.tensor([0, 0, 7, 8, 8, 70, 70], dtype=torch.int32, device=x.device)
    with runs(POOL):
        plain = partial(reference.attn_pool, cu_seqlens=cu)
        assert_forward_parity(partial(pool, cu_seqlens=cu), plain, (x[0], u), dtype)


def test_large_logits_stay_finite(make_tokens):
    x, u, mask = make_tokens(2, 33, 64, 4, scale=1e4)
    assert reference.attn_pool(x, u, mask)[1].abs().max() > 1e4
    for dtype in DTYPES:
        with runs(POOL):
            assert_forward_parity(partial(pool, mask=mask), partial(reference.attn_pool, mask=mask), (x, u), dtype)


@pytest.mark.parametrize("dim", (64, 2048))
def test_masked_tokens_are_not_read_and_an_all_masked_row_pools_to_zero(make_tokens, dim):
    x, u, mask = make_tokens(3, 37, dim, 4, torch.bfloat16)
    mask[1] = False
    with runs(POOL):
        clean, dirty = (pool(t, u, mask=mask) for t in (x, x.masked_fill(~mask[..., None], math.nan)))
    assert_equal(clean, dirty)
    assert (clean[0][1] == 0).all() and (clean[1][1] == -math.inf).all()


@pytest.mark.parametrize("dim,heads", [(64, 9), (2048, 33), (5120, 8), (6144, 20)])
def test_packed_and_padded_give_the_same_bits(make_tokens, dim, heads):
    x, u, _ = make_tokens(4, 37, dim, heads, torch.bfloat16)
    lengths = torch.tensor([37, 1, 16, 20], device=x.device)
    mask = torch.arange(37, device=x.device) < lengths[:, None]
    cu = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).int()
    packed = x[mask]
    packed[37:38] = math.nan  # what its neighbours must not see
    with runs(POOL):
        padded, flat = pool(x, u, mask=mask), pool(packed, u, cu_seqlens=cu)
    alone = pool(x[2:3, :16], u)
    for one, two, three in zip(padded, flat, alone, strict=True):
        assert torch.equal(one[[0, 2, 3]], two[[0, 2, 3]]) and torch.equal(one[2:3], three)
    assert flat[0][1].isnan().all()


def test_offsets_that_leave_the_batch_do_what_they_do_elsewhere(make_tokens, monkeypatch):
    # On a device nobody has looked at them, save that they are made not to fall.
    monkeypatch.setattr(pooling, "rising_offsets", lambda cu, x: cu.to(x.device).cummax(0).values)
    x, u, _ = make_tokens(1, 70, 1024, 4, torch.bfloat16)
    cu = torch.tensor([-5, 3, 60, 3, 900, 1 << 40])
    with runs(POOL):
        got = pooling.attn_pool(guarded(x[0]), u, None, cu)
    with library.experimental(False), runs("pool_forward"):
        plain = pooling.attn_pool(x[0], u, None, cu)
    for one, two in zip(got, plain, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-2, atol=1e-2)


@pytest.mark.skipif(not EMULATED, reason="chooses schedules in the emulation")
@pytest.mark.parametrize(
    "schedules", (SOME_SCHEDULES, pytest.param(SCHEDULES, marks=pytest.mark.full)), ids=("some", "all")
)
@pytest.mark.parametrize("case", ("scores", "narrow", "full", "wide", "fp8", "pool", "packed", "five", "six"))
def test_the_schedule_changes_nothing(make_pairs, make_tokens, monkeypatch, case, schedules):
    def outputs():
        if case == "pool":
            x, u, mask = make_tokens(5, 90, 2048, 33, torch.bfloat16)
            return pool(x, u, mask=mask)
        if case in ("five", "six"):  # blocks of a cluster
            x, u, mask = make_tokens(2, 50, {"five": 5120, "six": 6144}[case], 4, torch.bfloat16)
            return pool(x, u, mask=mask)
        if case == "packed":
            x, u, _ = make_tokens(1, 170, 1024, 16, torch.bfloat16)
            return pool(x[0], u, cu_seqlens=torch.tensor([0, 0, 7, 100, 100, 101, 170]))
        if case == "fp8":
            a, b, weight, *vectors = make_pairs(9, 150, 384, torch.float32)
            return (fp8.iem_scores(a, b, *fp8.quantize(weight), *vectors, backend="cuda"),)
        shape = {"scores": (10, 150, 256), "narrow": (9, 300, 128), "full": (3, 150, 512), "wide": (3, 150, 768)}[case]
        return scores(*make_pairs(*shape, torch.bfloat16))

    results = []
    for order, copies, products in schedules:
        monkeypatch.setenv("EMULATION_ORDER", order)
        monkeypatch.setenv("EMULATION_COPIES", copies)
        monkeypatch.setenv("EMULATION_PRODUCTS", products)
        pooled = case in ("pool", "packed", "five", "six")
        with runs(POOL if pooled else SCORES_FP8 if case == "fp8" else SCORES):
            results.append(outputs())
    for other in results[1:]:
        assert_equal(results[0], other)
