"""float32 on matrix units, emulated: sums that the units cut off stay within the contract up to the table's depth."""

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from d2llm_kernels.backends.triton import table
from tests.contract import assert_within


def tf32(x):
    """To the nearest number of 11 bits, ties away from zero."""
    return ((x.view(np.uint32) + 0x1000) & 0xFFFFE000).view(np.float32)


def cut_off(terms):
    """A sum as a unit of compute capability 8.0 was found to make it (Fasi et al., PeerJ Computer Science 7, 2021).

    Terms are cut off one bit below the last of the largest in float32, the sum is cut off to float32.
    """
    last = np.ldexp(1.0, np.frexp(np.abs(terms).max(0))[1] - 25)
    total = np.trunc(terms / last).sum(0) * last
    last = np.ldexp(1.0, np.frexp(total)[1] - 24)
    return np.trunc(total / last) * last


def product(a, b, depth):
    """a b as Triton's "tf32x3" computes it in blocks of ``depth``, whose sums ordinary additions add up."""
    result = np.zeros((a.shape[0], b.shape[1]), np.float32)
    for start in range(0, a.shape[1], depth):
        left, right = a[:, start : start + depth], b[start : start + depth]
        left_big, right_big = tf32(left), tf32(right)
        left_small, right_small = tf32(left - left_big), tf32(right - right_big)
        total = np.zeros(result.shape)
        for one, two in ((left_small, right_big), (left_big, right_small), (left_big, right_big)):
            for k in range(0, depth, 4):
                products = [np.outer(one[:, i], two[i]).astype(np.float64) for i in range(k, k + 4)]
                total = cut_off(np.stack([total, *products]))
        result += total.astype(np.float32)
    return result


def check(width, depth):
    generator = torch.Generator().manual_seed(width)
    h = torch.relu(torch.randn(32, width, generator=generator) + torch.randn(32, width, generator=generator))
    weight = torch.randn(width, 32, generator=generator) / width**0.5
    got = torch.from_numpy(product(h.numpy(), weight.numpy(), depth))
    assert_within(got, h @ weight, h.double() @ weight.double(), torch.float32)


@pytest.mark.parametrize("width", (64, 512, 1024))
@pytest.mark.parametrize("depth", (16, 32, table.DEEPEST))
def test_sums_of_a_block_stay_within_the_contract(width, depth):
    check(width, depth)


def test_sums_of_a_whole_row_would_not():
    with pytest.raises(AssertionError, match="RMS error|maximum error"):
        check(512, 512)
