"""LoRA beside a linear layer, over every backend: parity, gradients, number types, and what is refused."""

import pytest
import torch
from torch import Tensor

import d2llm_kernels as dk
from d2llm_kernels import backends, reference
from d2llm_kernels.functional import lora_linear
from tests.contract import assert_parity
from tests.kernels.cases import BACKENDS, CASES, apart, with_gradients

SCALING = 0.75
# Rows, K, N, R.
SIZES = ((1, 1, 1, 1), (33, 40, 70, 8), (130, 64, 32, 16), (0, 6, 5, 2), (7, 30, 9, 40))


def inputs(rows: int, depth: int, width: int, rank: int) -> list[Tensor]:
    """x, weight, bias, a, b and the dropped x."""
    generator = torch.Generator().manual_seed(rows + depth + width + rank)
    shapes = ((rows, depth), (width, depth), (width,), (rank, depth), (width, rank), (rows, depth))
    return [torch.randn(shape, generator=generator, dtype=torch.float64) / shape[-1] ** 0.5 for shape in shapes]


def formula(x, weight, bias, a, b, dropped=None):
    return (reference.lora_linear(x, weight, bias, a, b, SCALING, dropped),)


@pytest.mark.parametrize("backend,dtype", CASES)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_parity(backend, dtype, sizes):
    x, weight, bias, a, b, dropped = inputs(*sizes)

    def kernel(x, weight, bias, a, b, dropped=None):
        return (lora_linear(x, weight, bias, a, b, SCALING, dropped, backend),)

    assert_parity(kernel, formula, (x, weight, bias, a, b), dtype)
    assert_parity(kernel, formula, (x, weight, bias, a, b, dropped), dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_what_is_wanted_has_a_gradient_and_frozen_weights_cost_none(backend):
    tensors = [tensor.float() for tensor in inputs(9, 8, 7, 3)]
    every = with_gradients(lambda *t: lora_linear(*t[:5], SCALING, t[5], backend), tensors)[1:]
    for trained in ((0,), (1,), (2,), (3, 4), (5,), (0, 3, 4)):
        leaves = [tensor.detach().requires_grad_(place in trained) for place, tensor in enumerate(tensors)]
        lora_linear(*leaves[:5], SCALING, leaves[5], backend).sum().backward()
        for place, leaf in enumerate(leaves):
            if place in trained:
                torch.testing.assert_close(leaf.grad, every[place])
            else:
                assert leaf.grad is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck_and_opcheck(backend):
    x, weight, bias, a, b, dropped = inputs(3, 5, 4, 2)
    if backend == "folded":
        leaves = [tensor.requires_grad_() for tensor in (x, weight, bias, a, b, dropped)]
        call = lambda x, w, c, a, b, d: lora_linear(x, w, c, a, b, SCALING, d, backend)  # noqa: E731
        assert torch.autograd.gradcheck(call, leaves)
    some = [tensor.detach().float().requires_grad_() for tensor in (x, weight, bias, a, b)]
    torch.library.opcheck(torch.ops.d2llm.lora_linear, (*some, SCALING, None, backend))
    frozen = (some[0], some[1].detach(), None, *some[3:], SCALING, dropped.detach().float(), backend)
    torch.library.opcheck(torch.ops.d2llm.lora_linear, frozen)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_inputs_leading_dimensions_and_equal_bits(backend):
    tensors = [tensor.float() for tensor in inputs(24, 16, 9, 4)]
    expected = with_gradients(lambda *t: lora_linear(*t[:5], SCALING, t[5], backend), tensors)
    again = with_gradients(lambda *t: lora_linear(*t[:5], SCALING, t[5], backend), apart(tensors))
    torch.testing.assert_close(again, expected)
    x, *weights, dropped = tensors
    folded = lora_linear(x.view(2, 3, 4, 16), *weights, SCALING, dropped.view(2, 3, 4, 16), backend)
    assert torch.equal(folded.view(24, 9), expected[0])


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
def test_wide_factors_are_rounded_and_keep_their_gradients_type(backend):
    x, weight, bias, a, b, _ = inputs(9, 8, 7, 3)
    x, weight, bias = (tensor.bfloat16() for tensor in (x, weight, bias))
    a, b = (tensor.float().requires_grad_() for tensor in (a, b))
    y = lora_linear(x, weight, bias, a, b, SCALING, backend=backend)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, lora_linear(x, weight, bias, a.bfloat16(), b.bfloat16(), SCALING, backend=backend))
    y.float().sum().backward()
    assert a.grad.dtype == b.grad.dtype == torch.float32


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_and_a_compiled_graph(backend):
    x, weight, bias, a, b, _ = (tensor.float() for tensor in inputs(9, 8, 7, 3))
    half = [tensor.bfloat16() for tensor in (x, weight, bias, a, b)]
    expected = lora_linear(*half, SCALING, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(lora_linear(x, weight, bias, a, b, SCALING, backend=backend), expected)
    compiled = torch.compile(lora_linear, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(*half, SCALING, None, backend), expected)


def test_what_does_not_fit_is_named():
    x, weight, bias, a, b, dropped = inputs(3, 5, 4, 2)
    for name, arguments in {
        "weight": (x, weight[:, :3], None, a, b),
        "a": (x, weight, None, a[:, :3], b),
        "b": (x, weight, None, a, b[:, :1]),
        "bias": (x, weight, bias[:2], a, b),
        "dropped": (x, weight, None, a, b, 1.0, dropped[:1]),
        "x": (x.long(), weight, None, a, b),
    }.items():
        with pytest.raises(dk.ArgumentError, match=rf"^{name}: expected"):
            lora_linear(*arguments)
    with pytest.raises(dk.ArgumentError, match=r"^weight: expected the dtype of x, torch.float64, got torch.float32"):
        lora_linear(x, weight.float(), None, a, b)


def test_a_backend_without_it_says_so():
    with pytest.raises(dk.BackendError, match=r"^backend='cuda' cannot serve lora_linear: "):
        backends.select("lora_linear", "cuda", "cpu", torch.float32)
