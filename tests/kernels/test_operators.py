"""torch.library operators: opcheck, autocast, derivatives."""

import pytest
import torch

import d2llm_kernels as dk
from tests.kernels.cases import BACKENDS

TESTS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def branch(hidden, grad=True):
    shapes = ((hidden, hidden), (hidden,), (1, hidden), (1,))
    return tuple(torch.randn(*shape, requires_grad=grad) for shape in shapes)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("packed", (False, True))
def test_attn_pool_opcheck(packed, backend):
    u = torch.randn(2, 8, requires_grad=True)
    if packed:
        args = (torch.randn(9, 8, requires_grad=True), u, None, torch.tensor([0, 4, 4, 9]), backend)
    else:
        args = (torch.randn(3, 5, 8, requires_grad=True), u, torch.rand(3, 5) < 0.7, None, backend)
    torch.library.opcheck(torch.ops.d2llm.attn_pool, args, test_utils=TESTS)
    plain = tuple(t.detach() if isinstance(t, torch.Tensor) else t for t in args)
    dpooled, dlse = (torch.randn_like(t) for t in torch.ops.d2llm.attn_pool(*plain))
    for wanted in ((True, True), (True, False), (False, True)):
        torch.library.opcheck(torch.ops.d2llm.attn_pool_backward, (dpooled, dlse, *plain, wanted), test_utils=TESTS)


@pytest.mark.parametrize("backend", BACKENDS)
def test_interaction_opcheck(backend):
    a, b = torch.randn(4, 8, requires_grad=True), torch.randn(6, 8, requires_grad=True)
    weights = branch(8)
    torch.library.opcheck(torch.ops.d2llm.iem_scores, (a, b, *weights, None, backend), test_utils=TESTS)
    torch.library.opcheck(torch.ops.d2llm.iem_pairs, (a, b[:4], *weights, None, True, backend), test_utils=TESTS)
    torch.library.opcheck(torch.ops.d2llm.iem_pairs, (a, b[:4], *weights, None, False, backend), test_utils=TESTS)
    plain = tuple(t.detach() for t in (a, b, *weights))
    torch.library.opcheck(torch.ops.d2llm.iem_topk, (*plain, None, 3, backend), test_utils=TESTS)
    rows, slopes = (plain[0], plain[1][:4], *plain[2:]), (torch.randn(4), torch.randn(4, 8))
    for wanted in ((True, True), (True, False), (False, True)):
        call = (torch.randn(4, 6), *plain, None, backend, wanted)
        torch.library.opcheck(torch.ops.d2llm.iem_scores_backward, call, test_utils=TESTS)
        torch.library.opcheck(
            torch.ops.d2llm.iem_pairs_backward, (*slopes, *rows, None, backend, wanted), test_utils=TESTS
        )


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


def test_a_second_derivative_is_refused():
    x, u = torch.randn(1, 3, 4, requires_grad=True), torch.randn(2, 4)
    pooled, _ = dk.functional.attn_pool(x, u, backend="folded")
    (gradient,) = torch.autograd.grad(pooled.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(gradient.sum(), x)
