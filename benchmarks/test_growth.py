"""Nothing grows faster than the algebra says."""

import pytest

from benchmarks.growth import measure, sweeps
from d2llm_kernels.measure.case import FOLDED, kernels_for
from d2llm_kernels.measure.timing import Timer


@pytest.mark.parametrize("sweep", list(sweeps()), ids=lambda sweep: sweep.operation)
def test_growth(report, request, sweep):
    # Without the kernels plain torch is what people run; with both, a full run looks at both.
    backends = [*kernels_for(Timer.device, sweep.case(sweep.sizes[0]).dtype), FOLDED]
    for backend in backends if request.config.getoption("--full") else backends[:1]:
        found = measure(sweep, backend)
        kept = [
            row for row in report.values["growth"] if (row["operation"], row["backend"]) != (sweep.operation, backend)
        ]
        report.values["growth"] = [*kept, found]
        report.write()
        assert not found["faster"], found["faster"]
