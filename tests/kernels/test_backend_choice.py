"""Choosing a backend: per call, per module, by environment; missing ones say why; the report."""

import re
import runpy
import sys

import pytest
import torch

import d2llm_kernels as dk
from d2llm_kernels import backends
from d2llm_kernels.backends.cpu import library
from d2llm_kernels.backends.cuda import library as cuda


@pytest.mark.parametrize("name", ("cpu", "triton", "cuda"))
def test_a_missing_backend_named_explicitly_raises_with_the_reason(name, monkeypatch):
    monkeypatch.setattr(library, "missing", lambda: "not built")
    x, u = torch.randn(1, 3, 4), torch.randn(2, 4)
    reason = backends.missing(name)
    assert reason
    with pytest.raises(dk.BackendError, match=re.escape(reason)):
        dk.functional.attn_pool(x, u, backend=name)
    with pytest.raises(dk.BackendError, match=f"backend='{name}'"):
        dk.PMA(4, 2, backend=name)(x)
    monkeypatch.setenv(backends.ENVIRONMENT, name)
    with pytest.raises(dk.BackendError, match=backends.ENVIRONMENT):
        dk.functional.attn_pool(x, u)
    assert dk.functional.attn_pool(x, u, backend="folded")[0].shape == (1, 2, 4)


def test_unknown_names_are_refused(monkeypatch):
    with pytest.raises(dk.ArgumentError, match=r"^backend: expected one of"):
        dk.functional.attn_pool(torch.randn(1, 3, 4), torch.randn(2, 4), backend="fast")
    monkeypatch.setenv(backends.ENVIRONMENT, "fast")
    with pytest.raises(dk.ArgumentError, match=f"^{backends.ENVIRONMENT}: expected one of"):
        backends.select("attn_pool", "auto", "cpu", torch.float32)


def test_environment_chooses_only_where_nothing_else_does(monkeypatch):
    monkeypatch.setattr(library, "missing", lambda: "not built")

    def chosen(name):
        return backends.select("attn_pool", name, "cpu", torch.float32)

    assert chosen("auto") == "folded"
    monkeypatch.setenv(backends.ENVIRONMENT, "reference")
    assert chosen("auto") == "reference" and chosen("folded") == "folded"


def test_a_backend_without_the_operation_says_so_and_auto_passes_it_by(monkeypatch):
    monkeypatch.setattr(cuda, "missing", lambda: None)
    with pytest.raises(dk.BackendError, match=r"^backend='cuda' cannot serve in_batch_terms: there are no"):
        dk.functional.in_batch_terms(torch.randn(3, 3), backend="cuda")
    monkeypatch.setattr(backends, "FASTEST", {"cpu": ("cuda",)})
    assert dk.functional.in_batch_terms(torch.randn(3, 3))[0].shape == (3,)
    monkeypatch.setenv(backends.ENVIRONMENT, "cuda")
    with pytest.raises(dk.BackendError, match=f"^{backends.ENVIRONMENT}='cuda' cannot serve in_batch_terms"):
        dk.functional.in_batch_terms(torch.randn(3, 3))


@pytest.mark.cpu
def test_auto_takes_the_kernels_for_what_they_support_only():
    chosen = {dtype: backends.select("attn_pool", "auto", "cpu", dtype) for dtype in (torch.float32, torch.bfloat16)}
    assert set(chosen.values()) == {"cpu"}
    assert re.search(r"attn_pool +f16 bf16 f32 f64 +f16\* bf16 f32 f64\* +bf16\* f32\*$", dk.explain(), re.MULTILINE)
    for dtype in (torch.float64, torch.float16):
        assert backends.select("attn_pool", "auto", "cpu", dtype) == "folded"
        with pytest.raises(
            dk.BackendError,
            match=r"^backend='cpu' cannot serve attn_pool: the C\+\+ kernels take bfloat",
        ):
            dk.functional.attn_pool(torch.randn(1, 3, 4).to(dtype), torch.randn(2, 4).to(dtype), backend="cpu")
    with pytest.raises(dk.BackendError, match=r"take CPU tensors, got meta tensors"):
        backends.select("attn_pool", "cpu", "meta", torch.float32)


def test_explain_names_every_backend_and_operation(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["info"])
    text = dk.explain()
    for word in (*backends.NAMES[1:], *backends.OPERATIONS, torch.__version__, backends.missing("triton")):
        assert word in text
    runpy.run_module("d2llm_kernels.info", run_name="__main__")
    assert capsys.readouterr().out == text + "\n"
