"""The backends for GPUs as torch.library operators: opcheck, whole graphs, lengths that change."""

import pytest
import torch

import d2llm_kernels as dk

TESTS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def branch(hidden, device):
    shapes = ((hidden, hidden), (hidden,), (1, hidden), (1,))
    return tuple(torch.randn(*shape, device=device, requires_grad=True) for shape in shapes)


@pytest.mark.parametrize("packed", (False, True))
def test_attn_pool_opcheck(device, backend, packed):
    u = torch.randn(2, 16, device=device, requires_grad=True)
    if packed:
        x = torch.randn(9, 16, device=device, requires_grad=True)
        args = (x, u, None, torch.tensor([0, 4, 4, 9], device=device), backend)
    else:
        x = torch.randn(3, 5, 16, device=device, requires_grad=True)
        args = (x, u, torch.rand(3, 5, device=device) < 0.7, None, backend)
    torch.library.opcheck(torch.ops.d2llm.attn_pool, args, test_utils=TESTS)


def test_interaction_opcheck(device, backend):
    a = torch.randn(4, 16, device=device, requires_grad=True)
    b = torch.randn(6, 16, device=device, requires_grad=True)
    weights = branch(16, device)
    torch.library.opcheck(torch.ops.d2llm.iem_scores, (a, b, *weights, None, backend), test_utils=TESTS)
    torch.library.opcheck(torch.ops.d2llm.iem_pairs, (a, b[:4], *weights, None, True, backend), test_utils=TESTS)
    plain = tuple(t.detach() for t in (a, b, *weights))
    torch.library.opcheck(torch.ops.d2llm.iem_topk, (*plain, None, 3, backend), test_utils=TESTS)


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


@pytest.mark.float64
def test_float64_is_for_the_interpreter_alone(device, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    x, u = torch.randn(1, 3, 16), torch.randn(2, 16)
    with pytest.raises(
        dk.BackendError, match=r"backend='triton' cannot serve attn_pool: Triton kernels take CUDA or ROCm tensors"
    ):
        dk.functional.attn_pool(x, u, backend="triton")
