"""The efficiency that the paper claims, against what else could rank: one row a system."""

import pytest

from benchmarks.cost import measure, systems

pytest.importorskip("faiss", reason="the cosine's row needs faiss-cpu")
pytest.importorskip("maxsim_cpu", reason="late interaction's row needs maxsim-cpu")


def test_cost(report, request):
    report.values["cost"] = []
    for system in systems(request.config.getoption("--full")):
        report.values["cost"].append(measure(system))
        report.write()
    assert all(row["per_passage_s"] > 0 for row in report.values["cost"])
