"""The LLM compiled by torch computes the same, in one graph for all batches and lengths."""

import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from d2llm import merging
from d2llm.student import D2LLM, modeling
from d2llm.training import trainer

SHORT = ["open the file", "read x y z", "z"]
LONG = [f"close the socket of {name} and open the file" for name in "abcde"]


@pytest.fixture(autouse=True)
def graphs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trace as always, and leave the kernels, which take a minute to compile, to the benchmarks."""
    for module in (merging, modeling):
        monkeypatch.setattr(module, "compile_in_place", partial(nn.Module.compile, dynamic=True, backend="aot_eager"))
    for module in (modeling, trainer):
        monkeypatch.setattr(module, "check_compiler", lambda device: None)


def test_it_computes_the_same_in_one_graph(base_model: str) -> None:
    student = D2LLM.create(base_model, lora_r=4, iem_hidden=8, num_layers=2)
    expected = [student.encode(texts) for texts in (SHORT, LONG, SHORT[:1])]
    student.compile_encoder()
    found = [student.encode(SHORT)]
    with torch.compiler.set_stance("fail_on_recompile"):
        found += [student.encode(LONG), student.encode(SHORT[:1])]
    for got, want in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_without_a_compiler_it_is_refused_before_any_work() -> None:
    code = "import torch; from d2llm.compiling import check_compiler; check_compiler(torch.device('cpu'))"
    environment = {**os.environ, "CXX": "no-such-compiler", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert "MissingError: torch.compile" in done.stderr and "install a C++" in done.stderr, done.stderr
