"""Choosing a backend: per call, per module, by environment; missing ones say why; the report; accelerate."""

import re
import runpy
import sys

import pytest
import torch
from torch import nn

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


def test_explain_names_every_backend_and_operation(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["info"])
    text = dk.explain()
    for word in (*backends.NAMES[1:], *backends.OPERATIONS, torch.__version__, backends.missing("triton")):
        assert word in text
    runpy.run_module("d2llm_kernels.info", run_name="__main__")
    assert capsys.readouterr().out == text + "\n"


class ForeignBlock(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.num_heads = heads
        for name in ("fc_q", "fc_k", "fc_v", "fc_o"):
            setattr(self, name, nn.Linear(dim, dim))
        self.ln0, self.ln1 = nn.LayerNorm(dim), nn.LayerNorm(dim, eps=1e-3)


class ForeignPMA(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.S = nn.Parameter(torch.randn(1, 1, dim))
        self.mab = ForeignBlock(dim, heads)


class ForeignIEM(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(2 * dim, hidden), nn.Linear(hidden, 1)
        self.proj0, self.proj1 = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)


class ForeignModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(16, 16)
        self.heads = nn.ModuleDict({"pool": ForeignPMA(16, 4), "score": ForeignIEM(16, 7)})


def test_accelerate_swaps_in_place_and_shares_parameters():
    model = ForeignModel().eval()
    before = dict(model.named_parameters())
    assert dk.accelerate(model) is model
    pool, score = model.heads["pool"], model.heads["score"]
    assert isinstance(pool, dk.PMA) and isinstance(score, dk.IEM) and not pool.training
    assert isinstance(model.body, nn.Linear)
    after = dict(model.named_parameters())
    assert set(after) == set(before) and all(after[name] is before[name] for name in before)
    x, mask = torch.randn(2, 5, 16), torch.tensor([[1, 1, 1, 0, 0], [1] * 5])
    accelerated = pool(x, mask)
    pool.backend = "reference"
    torch.testing.assert_close(accelerated, pool(x, mask), rtol=1e-4, atol=1e-5)
    assert score(accelerated, accelerated, 1).shape == (2,)
    assert dk.accelerate(model).heads["pool"] is pool


def test_accelerate_returns_the_new_module_for_a_bare_one():
    foreign = ForeignPMA(16, 4)
    assert isinstance(dk.accelerate(foreign), dk.PMA)
    assert isinstance(dk.accelerate(ForeignIEM(16, 8), backend="reference"), dk.IEM)


def test_accelerate_needs_the_number_of_heads():
    foreign = ForeignPMA(16, 4)
    del foreign.mab.num_heads
    with pytest.raises(dk.ArgumentError, match=r"^num_heads: expected"):
        dk.accelerate(nn.Sequential(foreign))
