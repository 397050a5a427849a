"""Batches that differ in sizes alone, and the temperature, make Triton compile nothing anew: pooling and the losses."""

from functools import partial

import pytest
import torch

pytest.importorskip("triton")

from d2llm_kernels.backends.triton import operations as triton
from d2llm_kernels.branch import InBatch
from tests.kernels.specialisation import assert_compiled_once

# Batch and length: odd, even, multiples of 16, 1.
SHAPES = [(64, 256), (1, 256), (3, 77), (16, 1), (1, 1), (7, 48), (300, 2), (2000, 16)]


def meta(*shape, dtype=torch.bfloat16):
    return torch.empty(*shape, dtype=dtype, device="meta")


def pooling(kind, batch, length, dim, heads):
    x, u = meta(batch, length, dim), meta(heads, dim)
    mask = meta(batch, length, dtype=torch.bool) if kind == "masked" else None
    offsets = meta(batch + 1, dtype=torch.int32) if kind == "packed" else None
    x = x.flatten(0, 1) if kind == "packed" else x
    # PMA's gradient comes from a product with a head's values: (H, B, D) in memory.
    dpooled, dlse = meta(heads, batch, dim).transpose(0, 1), meta(batch, heads, dtype=torch.float32)
    triton.attn_pool(x, u, mask, offsets)
    triton.attn_pool_backward(dpooled, dlse, x, u, mask, offsets, (True, True))


@pytest.mark.parametrize("dim,heads", [(1024, 16), (1000, 8), (576, 70)])
@pytest.mark.parametrize("kind", ("whole", "masked", "packed"))
def test_pooling_is_compiled_once(kind, dim, heads):
    assert_compiled_once([partial(pooling, kind, *shape, dim, heads) for shape in SHAPES])


def losses(batch, temperature, hard=8):
    z, z_hard = meta(batch, batch, dtype=torch.float32), meta(batch, hard, dtype=torch.float32)
    inputs = (z, z_hard, torch.empty_like(z_hard), torch.empty_like(z), meta(batch, batch, dtype=torch.bool))
    rows = meta(batch, dtype=torch.float32)
    batch = InBatch(*inputs, temperature)
    triton.in_batch_terms(batch)
    triton.in_batch_terms_backward(rows, rows, batch)


def test_the_losses_are_compiled_once():
    assert_compiled_once([partial(losses, *call) for call in [(32, 1.0), (1, 1.0), (17, 0.07), (48, 0.05), (333, 2.0)]])
    # Several numbers of hard negatives have the same tile.
    assert_compiled_once([partial(losses, 32, 1.0, hard) for hard in (8, 7, 5)])
