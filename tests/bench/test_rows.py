"""Rows: what they count, that every variant is judged before it is timed, and what the table says of them."""

import time

import pytest
import torch

from d2llm_kernels.measure import ceilings, writing
from d2llm_kernels.measure.case import COMPILED, FOLDED, LITERAL, Target, compare, measure, measure_variant
from d2llm_kernels.measure.in_batch import losses
from d2llm_kernels.measure.interaction import groups, linear, pairs, score_all, scores, topk
from d2llm_kernels.measure.memory import peak_bytes
from d2llm_kernels.measure.passes import NAMES
from d2llm_kernels.measure.pooling import pma, pooling
from d2llm_kernels.measure.problems import Pool, best_of
from d2llm_kernels.measure.timing import Timer

SIZES = (2, 9, 32, 4)
RATES = ceilings.Ceilings(1e10, {"float32": 1e11, "bfloat16": 2e11, "int8": 4e11})
CASES = [
    *(pooling(passes, torch.float32, SIZES, kind) for passes in NAMES for kind in ("whole", "masked", "packed")),
    pooling("f", torch.bfloat16, SIZES),
    *(pma(passes, torch.float32, SIZES) for passes in ("f", "fb")),
    *(scores(passes, torch.float32, 3, 40, 16, 24) for passes in NAMES),
    *(pairs(passes, torch.float32, 20, 16, 24) for passes in ("f", "fb")),
    score_all(3, 20, 16, 24),
    groups(3, 4, 16, 24),
    topk(torch.float32, 2, 60, 16, 5, peers=("iem_scores",)),
    topk(torch.int8, 2, 60, 16, 5, peers=("bfloat16",)),
    losses(18, 2),
    losses(18, 2, literal=False),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_variant_is_right_and_timed(case):
    row = measure(case, Timer(), RATES, case.variants(Timer.device))
    assert row["flops"] > 0 and row["bytes"] > 0 and row["bound"] in ("arithmetic", "memory")
    assert FOLDED in row["variants"] and (LITERAL in row["variants"]) == case.literal
    for name, found in row["variants"].items():
        assert "failure" not in found, (name, found)
        assert found["median_s"] > 0 and found["peak_bytes"] > 0 and found["runs"] == 2
        assert found["percent"] == pytest.approx(100 * row["floor_s"] / found["median_s"])
        assert name == LITERAL or found["error"] <= found["limit"]
        others = [other for other in row["variants"] if other != name]
        assert list(found["ratios"]) == others


def test_a_projection_is_held_against_torch():
    case = linear(32, 24, 8)
    row = measure(case, Timer(), RATES, [FOLDED, LITERAL])
    assert all("failure" not in found for found in row["variants"].values())


def test_what_loses_bits_is_wrong(monkeypatch):
    right = Pool.forward
    monkeypatch.setattr(Pool, "forward", lambda self, backend: tuple(t * (1 + 1e-5) for t in right(self, backend)))
    row = measure(pooling("f", torch.float32, SIZES), Timer(), RATES, [FOLDED])
    assert row["variants"][FOLDED]["failure"].startswith("wrong: ")


@pytest.mark.parametrize("indices,passed", [([3, 1], True), ([1, 3], False), ([3, 3], False), ([3, 2], False)])
def test_the_best_are_in_order_and_nothing_better_is_left_out(indices, passed):
    exact = torch.tensor([0.0, 2.0, 1.0, 3.0], dtype=torch.float64)
    chosen = torch.tensor(indices)
    assert best_of(exact[chosen].float(), chosen, exact, exact.float(), torch.float32, 1).passed == passed


def test_the_compiled_literal_form_is_judged():
    prepared = pooling("fb", torch.float32, SIZES).prepare(Timer.device)
    right = measure_variant(prepared, COMPILED, Timer(), 1.0, lambda f: torch.compile(f, backend="eager"))
    assert right["error"] <= right["limit"] and right["median_s"] > 0
    wrong = measure_variant(prepared, COMPILED, Timer(), 1.0, lambda f: lambda: f() * 1.1)
    assert wrong["failure"].startswith("wrong: ") and "median_s" not in wrong


def test_what_does_not_run_says_why_and_spoils_nothing_else():
    case = pooling("f", torch.float64, SIZES)
    row = measure(case, Timer(), ceilings.Ceilings(1e10, {"float64": 1e10}), ["cuda", FOLDED])
    assert row["variants"]["cuda"]["failure"].startswith("BackendError")
    assert row["variants"][FOLDED]["median_s"] > 0
    text = writing.aligned(writing.table([row]))
    assert "FAILING" in text and "BackendError" in text


def test_targets_are_met_or_named():
    row = {"variants": {"cpu": {"median_s": 1e-3, "percent": 40.0}, LITERAL: {"median_s": 5e-3, "percent": 8.0}}}
    compare(row, Target(ratio=5, percent=50, milliseconds=2))
    assert row["variants"]["cpu"]["missed"] == [">= 50 %"]
    assert row["variants"]["cpu"]["ratios"] == {LITERAL: 5.0} and "missed" not in row["variants"][LITERAL]


def test_the_nearer_ceiling_bounds():
    assert RATES.floor(torch.float32, 1e11, 1e9) == (1.0, "arithmetic")
    assert RATES.floor(torch.bfloat16, 1e11, 1e10) == (1.0, "memory")


def test_ceilings_of_this_machine(monkeypatch):
    # bfloat16 takes seconds where the CPU has no products of it.
    monkeypatch.setattr(ceilings, "_CPU_ROWS", 64)
    found = ceilings.measure(Timer(), copied_bytes=1 << 20)
    assert found.copy > 0 and found.products.keys() == {"float32", "bfloat16", "int8"}
    assert all(found.products[name] >= rate > 0 for name, rate in found.gemm.items())


def test_peak_memory_counts_what_is_held_at_once():
    def call() -> torch.Tensor:
        # 4 MB twice, then 1 MB beside one of them.
        first = torch.zeros(1 << 20) + 1
        return first[: 1 << 18].clone()

    assert peak_bytes(call) == pytest.approx(8 << 20, rel=0.01)


def test_a_sample_has_the_median_and_the_deciles():
    waits = iter([0.0, 0.0, *(0.004 * n for n in range(1, 12))])
    sample = Timer(seconds=1.0, fewest=11, most=11).sample(lambda: time.sleep(next(waits)))
    assert sample.runs == 11 and 0.024 <= sample.median_s < 0.032
    assert 0.008 <= sample.low_s < 0.016 and 0.040 <= sample.high_s < 0.052 and sample.p99_s >= 0.044


def test_a_table_shows_every_figure_and_leaves_out_empty_columns():
    case = topk(torch.float32, 1, 60, 16, 5)
    rows = [measure(case, Timer(), RATES, [FOLDED, LITERAL])]
    head, *lines = writing.table(rows, without=("host",))
    assert {"operation", "GFLOP", "MB", "x reference", "% of limit", "peak MB", "+-", "rate"} <= set(head)
    assert "targets" not in head and "x compiled" not in head and "host" not in head
    assert [line[head.index("backend")] for line in lines] == [FOLDED, LITERAL]
    text = writing.aligned([head, *lines])
    assert text.count("iem_topk") == 1 and len(text.splitlines()) == 3
    assert writing.markdown([head, *lines])[1].count("---") == len(head)


@pytest.mark.parametrize(
    "seconds,text", [(2.5e-6, "2.5 us"), (0.0125, "12.5 ms"), (3.21, "3.21 s"), (0.9999, "1e+03 ms")]
)
def test_durations(seconds, text):
    assert writing.duration(seconds) == text
