"""What the interpreter computes in place of a GPU: products whose bits do not depend on where a row or column lies."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from d2llm_kernels.backends.triton import interpreted
from d2llm_kernels.backends.triton.language import dot

pytestmark = pytest.mark.skipif(not interpreted(), reason="of the interpreter")


@triton.jit
def product_kernel(a, b, c, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, TRANSPOSED: tl.constexpr):
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    if TRANSPOSED:
        left = tl.trans(tl.load(a + k[:, None] * M + m[None, :]))
    else:
        left = tl.load(a + m[:, None] * K + k[None, :])
    right = tl.load(b + k[:, None] * N + n[None, :])
    total = tl.load(c + m[:, None] * N + n[None, :])
    tl.store(c + m[:, None] * N + n[None, :], dot(left, right, total, "ieee"))


@triton.jit
def softmax_kernel(x, rows, columns, M: tl.constexpr, N: tl.constexpr):
    m, n = tl.arange(0, M), tl.arange(0, N)
    values = tl.exp(tl.load(x + m[:, None] * N + n[None, :]))
    tl.store(rows + m, tl.log(tl.sum(values, 1)))
    tl.store(columns + n, tl.log(tl.sum(values, 0)))


def product(a, b, transposed=False):
    (rows, depth), columns = a.shape, b.shape[1]
    c = torch.ones(rows, columns, dtype=a.dtype)
    left = a.T.contiguous() if transposed else a
    product_kernel[(1,)](left, b, c, M=rows, N=columns, K=depth, TRANSPOSED=transposed)
    return c


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("transposed", (False, True))
@pytest.mark.parametrize("rows,depth,columns", [(16, 16, 16), (32, 64, 128), (128, 32, 16), (64, 128, 32)])
def test_a_product_does_not_depend_on_the_place_in_a_tile(rows, depth, columns, transposed, dtype):
    generator = torch.Generator().manual_seed(rows + depth + columns)
    a, b = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((rows, depth), (depth, columns)))
    expected = (1 + a @ b).to(dtype)
    a, b = a.to(dtype), b.to(dtype)
    got = product(a, b, transposed)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    for place in (1, rows // 2 + 1, rows - 1):
        assert torch.equal(product(a.roll(place, 0), b, transposed), got.roll(place, 0))
    for place in (1, columns // 2 + 1, columns - 1):
        assert torch.equal(product(a, b.roll(place, 1), transposed), got.roll(place, 1))


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("height,width", [(16, 16), (32, 128), (128, 64), (8, 2048)])
def test_a_sum_does_not_depend_on_the_place_in_a_tile(height, width, dtype):
    def sums(x):
        rows, columns = x.new_empty(height), x.new_empty(width)
        softmax_kernel[(1,)](x.contiguous(), rows, columns, M=height, N=width)
        return rows, columns

    x = torch.randn(height, width, generator=torch.Generator().manual_seed(height), dtype=torch.float64).to(dtype)
    rows, columns = sums(x)
    for place in (1, 5, height - 1):
        assert torch.equal(sums(x.roll(place, 0))[0], rows.roll(place))
        assert torch.equal(sums(x.roll(place, 1))[1], columns.roll(place))


def test_the_product_is_not_that_of_a_blas(monkeypatch):
    """A BLAS owes nobody that two rows are summed in one order: here is one that sums every second row backwards."""
    matmul = np.matmul

    def uneven(a, b, **options):
        c = matmul(a, b, **options)
        c[1::2] = matmul(a[1::2, ::-1], b[::-1], **options)
        return c

    monkeypatch.setattr(np, "matmul", uneven)
    a, b = torch.randn(1, 64).expand(32, -1).contiguous(), torch.randn(64, 16)
    got = product(a, b)
    assert torch.equal(got, got[:1].expand(32, -1))
