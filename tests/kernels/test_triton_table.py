"""The table of tiles: complete, and its nearest row found for any width and architecture."""

import pytest
import torch

pytest.importorskip("triton")

from d2llm_kernels.backends.triton import table

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
