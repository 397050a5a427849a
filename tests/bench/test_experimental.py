"""Rows' variants for one GPU alone: offered there and nowhere else, judged as the others are."""

import pytest
import torch

from benchmarks.gpu_report import experimental
from d2llm_kernels import backends
from d2llm_kernels.measure.interaction import FP8, scores
from d2llm_kernels.measure.pooling import pooling
from d2llm_kernels.measure.problems import Interaction
from d2llm_kernels.measure.timing import Timer

SMALL = scores("f", torch.bfloat16, 3, 40, 16, 24)


@pytest.mark.parametrize(
    "case,capability,missing,names",
    [
        (SMALL, (9, 0), None, [experimental.HOPPER, FP8]),
        (SMALL, (8, 0), None, []),
        (SMALL, (9, 0), "not built", []),
        (scores("fb", torch.bfloat16, 3, 40, 16, 24), (9, 0), None, []),
        (scores("f", torch.float32, 3, 40, 16, 24), (9, 0), None, []),
        (pooling("f", torch.float16, (2, 9, 64, 2)), (9, 0), None, [experimental.HOPPER]),
    ],
)
def test_offered_where_the_kernels_are(monkeypatch, case, capability, missing, names):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(backends, "missing", lambda name: missing)
    assert experimental.variants(case, torch.device("cuda")) == names
    assert experimental.variants(case, torch.device("cpu")) == []


def test_fp8_is_judged(monkeypatch):
    found = experimental.measure(SMALL, FP8, Timer(fewest=1, most=1), 1.0)
    assert found["median_s"] > 0 and 0 <= found["error"] <= found["limit"]
    right = Interaction.in_fp8
    monkeypatch.setattr(Interaction, "in_fp8", lambda self, backend="auto": right(self, backend) * 1.1)
    assert experimental.measure(SMALL, FP8, Timer(fewest=1, most=1), 1.0)["failure"].startswith("wrong")
