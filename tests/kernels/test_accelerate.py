"""Swapping PMA and IEM into a model that has modules of those shapes."""

import pytest
import torch
from torch import nn

import d2llm_kernels as dk


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
