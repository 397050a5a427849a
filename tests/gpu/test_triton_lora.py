"""LoRA's Triton kernel: parity forward and backward, in every number type that it takes."""

import pytest
import torch

from d2llm_kernels import reference
from d2llm_kernels.functional import lora_linear
from tests.contract import assert_parity
from tests.gpu.conftest import FLOAT16

SCALING = 0.75
# Rows, K, N, R: blocks cut off on every side, whole ones, several of columns, more rows than are grouped.
SIZES = ((5, 7, 3, 1), (32, 64, 64, 8), (70, 33, 100, 20), (300, 16, 40, 4))


def tensors(rows, depth, width, rank, device):
    generator = torch.Generator().manual_seed(rows + depth + width + rank)
    shapes = ((rows, depth), (width, depth), (width,), (rank, depth), (width, rank), (rows, depth))
    return [
        (torch.randn(shape, generator=generator, dtype=torch.float64) / shape[-1] ** 0.5).to(device) for shape in shapes
    ]


def kernel(x, weight, bias, a, b, dropped=None):
    return (lora_linear(x, weight, bias, a, b, SCALING, dropped, "triton"),)


def formula(x, weight, bias, a, b, dropped=None):
    return (reference.lora_linear(x, weight, bias, a, b, SCALING, dropped),)


@pytest.mark.parametrize(
    "dtype",
    (FLOAT16, torch.bfloat16, torch.float32, pytest.param(torch.float64, marks=pytest.mark.float64)),
    ids=lambda dtype: str(dtype).removeprefix("torch."),
)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_parity(sizes, dtype, device):
    assert_parities(sizes, dtype, device)


def test_parity_in_float16(device):
    assert_parities(SIZES[1], torch.float16, device)


def assert_parities(sizes, dtype, device):
    x, weight, bias, a, b, dropped = tensors(*sizes, device)
    assert_parity(kernel, formula, (x, weight, bias, a, b), dtype)
    assert_parity(kernel, formula, (x, weight, bias, a, b, dropped), dtype)


def test_no_bias_no_rows_and_the_gradient_of_frozen_weights(device):
    x, weight, _, a, b, _ = (tensor.float() for tensor in tensors(9, 8, 7, 3, device))
    a.requires_grad_(), b.requires_grad_(), x.requires_grad_()
    y = lora_linear(x, weight, None, a, b, SCALING, backend="triton")
    expected = reference.lora_linear(x, weight, None, a, b, SCALING)
    torch.testing.assert_close(y, expected)
    slope = torch.randn_like(y)
    found, wanted = (torch.autograd.grad(each, (x, a, b), slope) for each in (y, expected))
    torch.testing.assert_close(found, wanted)
    assert lora_linear(x[:0], weight, None, a, b, SCALING, backend="triton").shape == (0, 7)
