"""The CUDA kernels in the emulation under other schedules, and the emulation itself: does it see what it should?"""

import math
from functools import cache, partial

import pytest
import torch

import d2llm_kernels as dk
from d2llm_kernels import reference
from tests.contract import assert_parity, run

SCHEDULES = (("reverse", "late"), ("7", "late"), ("forward", "eager"), ("reverse", "eager"))
# Each order, and each time at which copies are there, beside the usual schedule.
SOME_SCHEDULES = (("reverse", "late"), ("7", "eager"))


def everything(dtype: torch.dtype) -> list[torch.Tensor]:
    """Outputs and gradients of every operation."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    hidden = 80
    weights = (random(hidden, hidden) / math.sqrt(hidden), random(hidden), random(1, hidden), random(1))
    x, u = random(3, 70, 600), random(20, 600) / 20
    mask = torch.rand(3, 70, generator=generator) < 0.7
    cu = torch.tensor([0, 5, 5, 70])

    def step(x, u, a, b, *weights):
        return (
            *dk.functional.attn_pool(x, u, mask, backend="cuda"),
            *dk.functional.attn_pool(x[0], u, cu_seqlens=cu, backend="cuda"),
            dk.functional.iem_scores(a, b, *weights, backend="cuda"),
            *dk.functional.iem_pairs(a, b[:9], *weights, return_features=True, backend="cuda"),
            dk.functional.iem_topk(a, b, *weights, 5, backend="cuda")[0],
        )

    outputs, gradients = run(step, (x, u, random(9, hidden), random(45, hidden), *weights))
    return [*outputs, *gradients]


@cache
def usually(dtype: torch.dtype) -> list[torch.Tensor]:
    """The same, forwards and with copies as late as they may be."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMULATION_ORDER", "forward")
        patch.setenv("EMULATION_COPIES", "late")
        return everything(dtype)


@pytest.mark.parametrize(
    ("dtype", "schedules"),
    (
        (torch.float32, SOME_SCHEDULES),
        pytest.param(torch.float32, SCHEDULES, marks=pytest.mark.rest),
        (torch.bfloat16, SCHEDULES),
    ),
    ids=("float32-some", "float32", "bfloat16"),
)
def test_the_schedule_changes_nothing(dtype, schedules, monkeypatch):
    for order, copies in schedules:
        monkeypatch.setenv("EMULATION_ORDER", order)
        monkeypatch.setenv("EMULATION_COPIES", copies)
        assert all(torch.equal(one, two) for one, two in zip(usually(dtype), everything(dtype), strict=True))


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_given_pairs_score_as_they_do_in_a_grid(make_pairs, dtype):
    a, b, *weights = make_pairs(3, 20, 200, dtype)
    grid = dk.functional.iem_scores(a, b, *weights, backend="cuda")
    assert torch.equal(grid, dk.functional.iem_pairs(a[:, None], b[None].expand(3, -1, -1), *weights, backend="cuda"))


@pytest.mark.parametrize(
    "terms,total",
    [
        ({8: 1.0, 0: 1.5 * 2**-24}, 1.0),
        ({8: -1.0, 5: -1.5 * 2**-24}, -1.0),
        ({8: 1 + 2**-23, 0: 2**-24}, 1 + 2**-23),
        ({8: 1.0, 0: 2**-24, 1: 2**-24}, 1 + 2**-23),
        ({8: 1.0, 0: 2**-24, 4: 2**-24}, 1.0),
        ({0: 1.0, 1: 2**-12, 2: -1.0}, 2**-12),
    ],
)
def test_matrix_units_cut_off_what_arithmetic_would_round(terms, total):
    source = torch.zeros(64)
    for place, term in terms.items():
        source[place] = term
    assert (torch.ops.d2llm_emulation.fault(source, "product") == total).all()


def test_long_sums_of_float32_stay_within_the_contract(make_pairs, make_tokens, monkeypatch):
    monkeypatch.setenv(dk.backends.ENVIRONMENT, "cuda")
    pairs = partial(dk.functional.iem_pairs, return_features=True)
    assert_parity(lambda *t: (dk.functional.iem_scores(*t),), lambda *t: (reference.iem_scores(*t),),
                  make_pairs(2, 20, 512), torch.float32)  # fmt: skip
    assert_parity(pairs, reference.iem_pairs, make_pairs(20, 20, 512), torch.float32)
    for shape in ((1, 20, 4096, 4), (1, 700, 64, 4)):
        x, u, _ = make_tokens(*shape)
        assert_parity(dk.functional.attn_pool, reference.attn_pool, (x, u), torch.float32)


def test_every_gpu_has_the_shared_memory():
    for dtype in (torch.float32, torch.bfloat16):
        usually(dtype)
        x, u = torch.zeros(1, 3, 64, dtype=dtype), torch.zeros(64, 64, dtype=dtype, requires_grad=True)
        dk.functional.attn_pool(x, u, backend="cuda")[0].sum().backward()
    # Compute capability 8.6, 8.9 and 12.0 (CUDA programming guide, technical specifications).
    assert 64 << 10 < torch.ops.d2llm_emulation.largest_shared() <= 99 << 10


@pytest.mark.parametrize(
    "fault,message",
    [
        ("guard", "wrote past the end of shared memory"),
        ("barrier", "threads wait for others that never come"),
        ("alignment", "a copy of 16 bytes is not aligned"),
        ("spin", "a block waits for one that has not started"),
    ],
)
def test_faults_are_seen(fault, message):
    with pytest.raises(RuntimeError, match=message):
        torch.ops.d2llm_emulation.fault(torch.empty(64), fault)


BOXES = torch.arange(64 * 64).view(64, 64).remainder(97).bfloat16()


@pytest.mark.parametrize("mode", ("late", "eager"))
@pytest.mark.parametrize(
    "fault,message",
    [
        ("nobody", "threads wait for others that never come"),
        ("uninitialized", "a barrier was not initialized"),
        ("many", "one arrival too many"),
        ("named", "a thread arrives at a barrier that still waits"),
        ("ended", "an access to a block that has ended"),
        ("fence", "products without a fence"),
        ("origin", "refused"),
        ("wide", "refused"),
    ],
)
def test_faults_of_clusters_and_asynchronous_units_are_seen(fault, message, mode, monkeypatch):
    monkeypatch.setenv("EMULATION_COPIES", mode)
    monkeypatch.setenv("EMULATION_PRODUCTS", mode)
    with pytest.raises(RuntimeError, match=f"hopper_fault .*{message}"):
        torch.ops.d2llm_emulation.hopper_fault(BOXES, fault)


def test_boxes_have_their_place_and_their_time(monkeypatch):
    expected = BOXES[:1].float().repeat(2, 2)
    assert torch.equal(torch.ops.d2llm_emulation.hopper_fault(BOXES, "boxed"), expected)
    assert torch.ops.d2llm_emulation.hopper_fault(BOXES, "box").isnan().all()
    with pytest.raises(RuntimeError, match="ends with copies under way"):
        torch.ops.d2llm_emulation.hopper_fault(BOXES, "unwaited")
    monkeypatch.setenv("EMULATION_COPIES", "eager")
    assert torch.equal(torch.ops.d2llm_emulation.hopper_fault(BOXES, "box"), expected)
    with pytest.raises(RuntimeError, match="a box is not aligned"):
        torch.ops.d2llm_emulation.hopper_fault(BOXES, "misplaced")


@pytest.mark.parametrize("fault", ("left", "right", "sums"))
def test_products_that_are_not_waited_for_read_and_write_late(fault, monkeypatch):
    assert (torch.ops.d2llm_emulation.hopper_fault(BOXES, "product") == 16).all()
    late = torch.ops.d2llm_emulation.hopper_fault(BOXES, fault)
    assert (late.isnan() if fault == "sums" else late != 16).all()
    monkeypatch.setenv("EMULATION_PRODUCTS", "eager")
    assert (torch.ops.d2llm_emulation.hopper_fault(BOXES, fault) == 16).all()


def test_a_race_gives_other_results_in_another_order(monkeypatch):
    results = []
    for order in ("forward", "reverse"):
        monkeypatch.setenv("EMULATION_ORDER", order)
        results.append(torch.ops.d2llm_emulation.fault(torch.empty(64), "race"))
    assert not torch.equal(*results)


def test_a_copy_that_is_not_waited_for_is_not_there_yet(monkeypatch):
    source = torch.arange(64.0)
    assert torch.ops.d2llm_emulation.fault(source, "copy").isnan().all()
    assert torch.equal(torch.ops.d2llm_emulation.fault(source, "waited"), source)
    monkeypatch.setenv("EMULATION_COPIES", "eager")
    assert torch.equal(torch.ops.d2llm_emulation.fault(source, "copy"), source)
