"""A batch of another size makes no Triton kernel compile again."""

from collections.abc import Callable
from functools import partial

import pytest
import torch

pytest.importorskip("triton")

from d2llm_kernels import gpu_interaction
from d2llm_kernels import triton as triton_backend
from d2llm_kernels.iem_folded import Branch
from tests.kernels.specialisation import assert_compiled_once

WIDTH = 64
# Ones, odd numbers, multiples of 16.
SIZES = ((3, 70), (1, 1), (16, 48), (1, 16), (7, 32), (32, 5))


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def scores(dtype: torch.dtype, queries: int, passages: int) -> Callable[[], object]:
    branch = Branch(*(meta(*shape, dtype=dtype) for shape in ((WIDTH, WIDTH), (WIDTH,), (1, WIDTH), (1,))))
    a, b = meta(queries, WIDTH, dtype=dtype), meta(passages, WIDTH, dtype=dtype)
    dz = meta(queries, passages, dtype=torch.float32)

    def call() -> None:
        triton_backend.iem_scores(a, b, branch, None)
        triton_backend.iem_scores_backward(dz, a, b, branch, None, (True, True))

    return call


def pairs(dtype: torch.dtype, rows: int, features: bool) -> Callable[[], object]:
    branch = Branch(*(meta(*shape, dtype=dtype) for shape in ((WIDTH, WIDTH), (WIDTH,), (1, WIDTH), (1,))))
    a = meta(rows, WIDTH, dtype=dtype)
    dz, dfeatures = meta(rows, dtype=torch.float32), torch.empty_like(a) if features else None

    def call() -> None:
        triton_backend.iem_pairs(a, a, branch, None, features)
        triton_backend.iem_pairs_backward(dz, dfeatures, a, a, branch, None, (True, True))

    return call


def topk(dtype: torch.dtype, queries: int, passages: int) -> Callable[[], object]:
    branch = Branch(*(meta(*shape, dtype=dtype) for shape in ((WIDTH, WIDTH), (WIDTH,), (1, WIDTH), (1,))))
    a, b = meta(queries, WIDTH, dtype=dtype), meta(passages, WIDTH, dtype=dtype)
    return partial(triton_backend.iem_topk, a, b, branch, None, min(3, passages))


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float32))
@pytest.mark.parametrize("chunk", (1 << 18, 50))
def test_interaction_compiles_once_for_all_sizes(dtype, chunk, monkeypatch):
    monkeypatch.setattr(gpu_interaction, "_CHUNK", chunk)
    monkeypatch.setattr(gpu_interaction, "_TOPK_BYTES", 8 * chunk)
    assert_compiled_once([scores(dtype, *sizes) for sizes in SIZES])
    assert_compiled_once([topk(dtype, *sizes) for sizes in SIZES])
    for features in (False, True):
        assert_compiled_once([pairs(dtype, rows, features) for rows in (70, 1, 16, 7, 120)])
