"""PMA and IEM on GPUs, by every backend: the same as literally, whole graphs, lengths that change."""

from functools import partial

import pytest
import torch

import d2llm_kernels as dk
from tests.contract import run


def test_modules_equal_the_literal_ones(device, backend):
    torch.manual_seed(0)
    made = {}
    for name in (backend, "reference"):
        torch.manual_seed(0)
        made[name] = (
            dk.PMA(64, 4, init="xavier", backend=name).to(device),
            dk.IEM(64, 32, init="xavier", backend=name).to(device),
        )
    x, mask = torch.randn(4, 21, 64, device=device), torch.rand(4, 21, device=device) < 0.8
    task = torch.tensor([0, 1, 1, 0], device=device)

    def step(pma, iem, x):
        y = pma(x, mask)
        z, features = iem(y, y.flip(0), task, return_features=True)
        return z, features, iem.score_all(y, y, task)

    got = run(partial(step, *made[backend]), (x,))
    expected = run(partial(step, *made["reference"]), (x,))
    for one, two in zip((*got[0], *got[1]), (*expected[0], *expected[1]), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


# What a graph sees of an operator is the same for every backend: tests/kernels/test_heads.py, and opcheck here.
@pytest.mark.rest
def test_compiles_without_graph_breaks_for_any_length(device, backend):
    torch.manual_seed(0)
    pma = dk.PMA(32, 4, init="xavier", backend=backend).to(device)
    iem = dk.IEM(32, 16, init="xavier", backend=backend).to(device)

    def step(x, mask, cu, task):
        y = pma(x, mask) + pma(x.flatten(0, 1), cu_seqlens=cu)
        z, features = iem(y, y.flip(0), task, return_features=True)
        return z.sum() + features.square().sum() + iem.score_all(y, y, 1).logsumexp(1).sum()

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch, length in ((3, 5), (4, 9)):
        task = torch.arange(batch, device=device) % 2
        mask = torch.rand(batch, length, device=device) < 0.9
        cu = torch.arange(0, (batch + 1) * length, length, device=device)
        x = torch.randn(batch, length, 32, device=device, requires_grad=True)
        (expected,) = torch.autograd.grad(step(x, mask, cu, task), x)
        (got,) = torch.autograd.grad(compiled(x, mask, cu, task), x)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
