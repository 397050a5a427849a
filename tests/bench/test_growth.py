"""The fit of exponents, and that a call which grows too fast is told."""

import pytest
import torch

from benchmarks import growth
from d2llm_kernels.measure.case import Call, Case, Prepared
from d2llm_kernels.measure.contract import Verdict


@pytest.mark.parametrize("power", [0, 1, 1.5, 2])
def test_exponents_of_power_laws(power):
    sizes = (10, 30, 100, 300, 1000)
    assert growth.exponent(sizes, [3.0 * size**power for size in sizes]) == pytest.approx(power)


def test_memory_that_grows_too_fast_is_told():
    def case(size: int) -> Case:
        def prepare(device: torch.device) -> Prepared:
            def kernel(backend: str) -> Call:
                return Call(lambda: torch.zeros(size, size))

            return Prepared(1, 1, kernel, lambda wrap: Call(lambda: None), lambda name: Verdict(0, 1))

        return Case("square", f"{size}", torch.float32, 1, prepare)

    sweep = growth.Sweep("square", "N", (30, 100, 300, 1000, 3000), case, time=3, memory=1)
    found = growth.measure(sweep, "folded")
    assert found["memory"]["exponent"] == pytest.approx(2, abs=0.01)
    assert found["faster"] == ["memory ~ N^2.00, the algebra says 1"]
    head, line = growth.table([found])
    assert line[-1] == "FASTER THAN THE ALGEBRA" and "N^2.00" in line and len(line) == len(head)


def test_sweeps_span_two_decades():
    for sweep in growth.sweeps():
        assert sweep.sizes[-1] >= 100 * sweep.sizes[0]
