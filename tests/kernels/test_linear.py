"""Linear layers: parity of the C++ product with torch's, and when it is used."""

import pytest
import torch
import torch.nn.functional as F

import d2llm_kernels as dk
from d2llm_kernels.operators.linear import LINEAR_ROWS, linear
from tests.contract import assert_parity
from tests.kernels.cases import assert_same_on_any_threads


def inputs(*shapes: tuple[int, ...]):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]


def grouped(x, weight, bias=None):
    return (torch.einsum("gnk,gmk->gnm", x, weight) + (0 if bias is None else bias[:, None]),)


@pytest.mark.cpu
@pytest.mark.parametrize(
    "groups,rows,depth,outputs", [(1, 16, 1, 1), (3, 50, 70, 9), (1, 131, 1030, 70), (2, 33, 2100, 8)]
)
def test_parity(groups, rows, depth, outputs):
    x, weight, bias = inputs((groups, rows, depth), (groups, outputs, depth), (groups, outputs))
    kernel = lambda *t: (linear(*t, backend="cpu"),)  # noqa: E731
    assert_parity(kernel, grouped, (x, weight, bias), torch.float32)
    assert_parity(kernel, grouped, (x, weight), torch.float32)


@pytest.mark.cpu
def test_rows_do_not_depend_on_each_other_or_on_threads():
    x, weight, bias = (t.float() for t in inputs((100, 300), (700, 300), (700,)))
    assert_same_on_any_threads(lambda: (linear(x, weight, bias),))
    assert_same_on_any_threads(lambda: (linear(x[:17], weight, bias),))
    assert torch.equal(linear(x[:17], weight, bias), linear(x, weight, bias)[:17])


@pytest.mark.cpu
def test_opcheck():
    x, weight, bias = (t.float().requires_grad_() for t in inputs((2, 5, 6), (2, 4, 6), (2, 4)))
    torch.library.opcheck(torch.ops.d2llm.linear, (x, weight, bias, "cpu"))
    torch.library.opcheck(torch.ops.d2llm.linear, (x, weight.detach(), None, "cpu"))


@pytest.mark.parametrize("rows", (1, LINEAR_ROWS, 40))
@pytest.mark.parametrize("backend", ("auto", "folded", "reference"))
def test_it_is_torchs_linear(rows, backend):
    x, weight, bias = (t.float().requires_grad_() for t in inputs((2, rows, 60), (9, 60), (9,)))
    got, expected = linear(x, weight, bias, backend), F.linear(x, weight, bias)
    torch.testing.assert_close(got, expected)
    slope = torch.randn_like(expected)
    gradients = [torch.autograd.grad(y, (x, weight, bias), slope) for y in (got, expected)]
    torch.testing.assert_close(*gradients)


def test_strided_weights_and_rows():
    x, weight = (t.float() for t in inputs((20, 30), (9, 60)))
    torch.testing.assert_close(linear(x, weight[:, 30:]), x @ weight[:, 30:].T)
    torch.testing.assert_close(linear(x.T, weight[:, ::3]), x.T @ weight[:, ::3].T)


@pytest.mark.parametrize("dtype", (torch.float64, torch.bfloat16))
def test_other_dtypes_and_autocast_are_torchs(dtype):
    x, weight = (t.to(dtype) for t in inputs((20, 30), (9, 30)))
    assert torch.equal(linear(x, weight), F.linear(x, weight))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(x.float(), weight.float()).dtype == torch.bfloat16


def test_shapes_that_do_not_fit_are_named():
    x, weight = torch.randn(3, 5), torch.randn(2, 4)
    with pytest.raises(dk.ArgumentError, match=r"^x: expected rows for a weight of .*2, 4.*, got .*3, 5"):
        linear(x, weight)
    with pytest.raises(dk.ArgumentError, match=r"^x: "):
        linear(torch.randn(3, 4), weight[None])
    with pytest.raises(dk.ArgumentError, match=r"^bias: expected shape \(2,\), got \(3,\)"):
        linear(torch.randn(3, 4), weight, torch.zeros(3))
