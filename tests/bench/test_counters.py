"""The gate: counters are exact, and more of anything is a failure."""

from functools import partial

import pytest
import torch

from benchmarks.counters import __main__ as gate
from benchmarks.counters import cases, instructions
from benchmarks.counters.launches import DEVICE, issued
from d2llm_kernels.measure.memory import peak_bytes

BUILT = {"torch": "2.13.0", "compiler": "g++ 12"}


def baseline(**counts):
    return {"built_with": BUILT, "counts": counts}


@pytest.mark.skipif(instructions.missing() is not None, reason=str(instructions.missing()))
def test_instructions_are_those_of_the_call(tmp_path):
    counter = instructions.Counter(tmp_path)
    few, many = (counter.count(partial(sum, [1] * size)) for size in (1000, 4000))
    assert 0 < few < many
    # The same again, and four times the work is about four times the instructions.
    assert counter.count(partial(sum, [1] * 4000)) == pytest.approx(many, rel=0.02)
    assert 3.5 < many / few < 4.1


def test_growth_beyond_the_tolerance_fails_and_less_is_told():
    known = {"peak bytes, cpu": {"a": 1000, "b": 1000, "c": 1000}}
    worse, notes = gate.compare(baseline(**known), {"peak bytes, cpu": {"a": 1009, "b": 1100, "c": 500}}, BUILT)
    assert worse == ["peak bytes, cpu, b: 1,000 -> 1,100 (+10.0 %)"]
    assert notes == ["peak bytes, cpu, c: 1,000 -> 500, better; --update keeps it"]


def test_another_compiler_or_torch_is_not_compared():
    known = {"instructions, avx2": {"a": 10}, "FLOPs, folded": {"a": 10}}
    more = {kind: {"a": 20} for kind in known}
    worse, notes = gate.compare(baseline(**known), more, {**BUILT, "compiler": "g++ 14"})
    assert worse == ["FLOPs, folded, a: 10 -> 20 (+100.0 %)"]
    assert notes == ["instructions, avx2: not compared, the baseline is of g++ 12, this is g++ 14"]


def test_what_the_baseline_lacks_is_told():
    worse, notes = gate.compare(baseline(), {"FLOPs, folded": {"a": 1}}, BUILT)
    assert not worse and notes == ["FLOPs, folded: not in the baseline"]


def test_memory_counters_repeat_themselves():
    torch.manual_seed(0)
    for case in cases.allocated("folded"):
        case.run()
        assert peak_bytes(case.run) == peak_bytes(case.run) > 0


def test_operations_of_the_folded_forms():
    found = gate.count_operations()["FLOPs, folded"]
    # Two products of (T, D) with (H, D): scores and the weighted sum.
    assert found["attn_pool"] == 2 * 2 * 4 * 96 * 64 * 4
    # A product of (pairs, F) with (F, F); the last layer is no matrix product.
    assert found["iem_scores"] == 16 * 256 * 2 * 64**2


def test_what_an_update_does_not_count_stays_unless_it_is_of_another_build():
    known = baseline(**{"instructions, avx512": {"a": 1}, "FLOPs, folded": {"a": 1}, "launches, triton": {"a": 9}})
    new = gate.updated(known, {"launches, triton": {"a": 5}}, {**BUILT, "compiler": "g++ 14"})
    assert new["counts"] == {"FLOPs, folded": {"a": 1}, "launches, triton": {"a": 5}}
    assert new["built_with"]["compiler"] == "g++ 14"


def test_launches_are_triton_kernels_and_what_torch_launches():
    pytest.importorskip("triton")
    x = torch.empty(4, 3, device=DEVICE)
    with issued() as found:
        x.t().expand(2, 3, 4).contiguous().add_(torch.empty_like(x.t()))
    assert found.launching == ["clone", "add_.Tensor"] and found.launches == 2
    # Besides: an allocation and three views.
    assert found.host_operations == found.launches + 4
    counts = gate.count_launches()
    launched, asked = counts["launches, triton"], counts["host operations, triton"]
    assert launched.keys() == asked.keys() and all(0 < launched[name] <= asked[name] for name in asked)
    # Scores in chunks of pairs: the backward's three kernels and their sums for each.
    assert launched["IEM.score_all 4096 backward"] > 20 * launched["IEM.score_all 32 backward"] / 3
    assert "IEM.topk backward" not in launched
