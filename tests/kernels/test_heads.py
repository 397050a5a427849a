"""PMA and IEM together: names of their weights, devices, autocast, whole graphs, what they refuse."""

import pytest
import torch

import d2llm_kernels as dk
from d2llm_kernels import reference
from tests.kernels.cases import BACKENDS

UPSTREAM_PMA = {"S"} | {
    f"mab.{layer}.{kind}" for layer in ("fc_q", "fc_k", "fc_v", "fc_o", "ln0", "ln1") for kind in ("weight", "bias")
}
UPSTREAM_IEM = {f"{layer}.{kind}" for layer in ("linear1", "proj0", "proj1", "linear2") for kind in ("weight", "bias")}


def test_upstream_state_dict_names():
    pma, iem = dk.PMA(32, 4), dk.IEM(32, 16)
    assert set(pma.state_dict()) == UPSTREAM_PMA and set(iem.state_dict()) == UPSTREAM_IEM
    assert pma.S.shape == (1, 1, 32) and iem.linear1.weight.shape == (16, 64) and iem.linear2.weight.shape == (1, 16)


def test_modules_run_on_the_meta_device():
    with torch.device("meta"):
        assert dk.PMA(32, 4)(torch.randn(2, 3, 32)).shape == (2, 32)
        assert dk.IEM(32, 16).score_all(torch.randn(2, 32), torch.randn(3, 32), 0).shape == (2, 3)


@pytest.mark.parametrize("backend", (*BACKENDS, "reference"))
def test_autocast_follows_its_dtype_and_sums_in_float32(backend):
    torch.manual_seed(0)
    pma, iem = dk.PMA(32, 4, backend=backend, init="xavier"), dk.IEM(32, 16, backend=backend, init="xavier")
    x = torch.randn(3, 9, 32, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pooled, lse = dk.functional.attn_pool(x, pma.folded_queries(), backend=backend)
        y = pma(x)
        z = iem.score_all(y, y, 0)
    assert pooled.dtype == torch.bfloat16 and lse.dtype == torch.float32
    torch.testing.assert_close(y.float(), pma(x).float(), rtol=0.1, atol=0.1)
    z.float().sum().backward()
    assert x.grad.dtype == torch.float32 and x.grad.isfinite().all()


def test_compiles_without_graph_breaks_for_any_length():
    torch.manual_seed(0)
    pma, iem = dk.PMA(16, 4, init="xavier"), dk.IEM(16, 8, init="xavier")

    def step(x, mask, task):
        y = pma(x, mask)
        z, features = iem(y, y.flip(0), task, return_features=True)
        return z.sum() + features.square().sum() + iem.score_all(y, y, 1).logsumexp(1).sum()

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch, length in ((3, 5), (4, 9), (6, 17)):
        task, mask = torch.arange(batch) % 2, torch.rand(batch, length) < 0.9
        x = torch.randn(batch, length, 16, requires_grad=True)
        (expected,) = torch.autograd.grad(step(x, mask, task), x)
        (got,) = torch.autograd.grad(compiled(x, mask, task), x)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_packed_batches_and_topk_compile():
    pma, iem = dk.PMA(16, 4), dk.IEM(16, 8)

    @torch.no_grad()
    def search(x, cu):
        y = pma(x, cu_seqlens=cu)
        return iem.topk(iem.project_queries(y), iem.project_passages(y), 2, 1)

    compiled = torch.compile(search, fullgraph=True, dynamic=True, backend="aot_eager")
    for lengths in ((3, 4, 5), (1, 7, 2, 9)):
        cu = torch.tensor([0, *lengths]).cumsum(0)
        x = torch.randn(sum(lengths), 16)
        for got, expected in zip(compiled(x, cu), search(x, cu), strict=True):
            torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    "make,name",
    [
        (lambda: dk.PMA(30, 4), "num_heads"),
        (lambda: dk.PMA(32, 4, residual="none"), "residual"),
        (lambda: dk.PMA(32, 4, init="zero"), "init"),
        (lambda: dk.PMA(32, 4, num_seeds=0), "num_seeds"),
        (lambda: dk.IEM(32, 1), "hidden"),
        (lambda: dk.IEM(32, 16).reset_parameters(sample=torch.zeros(3, 31)), "sample"),
        (lambda: dk.IEM(32, 16).reset_parameters(sample=torch.zeros(1, 32)), "sample"),
        (lambda: dk.IEM(32, 16, num_tasks=0), "num_tasks"),
        (lambda: dk.IEM(32, 16)(torch.zeros(2, 32), torch.zeros(2, 32), 2), "task"),
        (lambda: dk.IEM(32, 16)(torch.zeros(2, 32), torch.zeros(2, 32), "asym"), "task"),
        (lambda: dk.IEM(32, 16)(torch.zeros(2, 32), torch.zeros(2, 32), torch.tensor([0, 2])), "task"),
        (lambda: dk.IEM(32, 16)(torch.zeros(2, 32), torch.zeros(2, 32), torch.tensor([0, 1, 1])), "task"),
        (lambda: dk.IEM(32, 16)(torch.zeros(2, 31), torch.zeros(2, 32), 0), "q"),
        (lambda: dk.IEM(32, 16).score_all(torch.zeros(2, 32), torch.zeros(32), 0), "p"),
    ],
)
def test_bad_arguments_are_named(make, name):
    with pytest.raises(dk.ArgumentError, match=f"^{name}: expected"):
        make()


def test_reference_is_reachable():
    assert dk.reference is reference
