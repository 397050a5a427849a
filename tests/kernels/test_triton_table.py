"""The table of tiles: complete, its nearest row found for any width and architecture, float32 no deeper than it may be.

Matrix units cut sums of float32 off; emulated, those of the table's depth stay within the contract.
"""

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from d2llm_kernels.backends.triton import table
from tests.contract import assert_within

ARCHS = ("interpreter", "sm_80", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942")


def widths(kernel):
    if kernel.startswith("in_batch"):
        return {"K": 8}
    if kernel == "lora":
        return {"D": 2048, "R": 12}
    return {"D": 2048, "H": 24} if kernel.startswith("pool") else {"F": 384}


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.float32))
def test_every_kernel_has_tiles_everywhere(arch, dtype):
    for kernel in sorted({row["kernel"] for row in table.rows()}):
        row = table.nearest(kernel, arch, dtype, widths(kernel))
        assert arch in row["archs"] and str(dtype).removeprefix("torch.") in row["dtypes"]
        tiles = table.tiles(kernel, arch, dtype, **widths(kernel))
        assert tiles["num_warps"] in (4, 8) and all(v & (v - 1) == 0 for k, v in tiles.items() if k.startswith("BLOCK"))


@pytest.mark.parametrize(
    "arch,expected", [("sm_86", "sm_80"), ("sm_103", "sm_100"), ("sm_121", "sm_120"), ("gfx950", "gfx942")]
)
def test_an_unknown_architecture_takes_the_newest_older_one(arch, expected):
    kwargs = {"D": 4096, "H": 32}
    row = table.nearest("pool_forward", arch, torch.bfloat16, kwargs)
    assert row == table.nearest("pool_forward", expected, torch.bfloat16, kwargs)


def test_blocks_shrink_to_the_widths():
    tiles = table.tiles("pool_forward", "sm_90", torch.bfloat16, D=40, H=3)
    assert tiles["BLOCK_D"] <= 64 and tiles["SLICE"] == 64 and tiles["BLOCK_H"] == 16
    assert table.tiles("scores", "sm_90", torch.bfloat16, F=20)["BLOCK_N"] == 32
    assert table.tiles("pool_forward", "sm_90", torch.bfloat16, D=64, H=64)["BLOCK_H"] == 64


def test_float32_is_not_added_up_too_deep_inside_matrix_units():
    for row in table.rows():
        if "float32" in row["dtypes"] and row["archs"] != [table.INTERPRETER]:
            assert table.depth(row["kernel"], row["tiles"]) <= table.DEEPEST, row
    assert {row["kernel"] for row in table.rows() if not table.depth(row["kernel"], row["tiles"])} == {
        "pool_softmax",
        "in_batch_forward",
        "in_batch_backward",
    }


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
