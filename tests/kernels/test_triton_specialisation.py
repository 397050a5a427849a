"""A batch of another size makes no Triton kernel compile again."""

from collections.abc import Callable
from functools import partial

import pytest
import torch

pytest.importorskip("triton")

from d2llm_kernels.backends.gpu import interaction
from d2llm_kernels.backends.gpu import topk as gpu_topk
from d2llm_kernels.backends.triton import operations as triton_backend
from d2llm_kernels.branch import Branch
from tests.kernels.specialisation import assert_compiled_once

WIDTH = 64
# Ones, odd numbers, multiples of 16.
SIZES = ((3, 70), (1, 1), (16, 48), (1, 16), (7, 32), (32, 5))


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def branches(dtype: torch.dtype, tasks: int) -> Branch:
    stack = (tasks,) if tasks else ()
    shapes = ((*stack, WIDTH, WIDTH), (*stack, WIDTH), (1, WIDTH), (1,))
    return Branch(*(meta(*shape, dtype=dtype) for shape in shapes))


def rows_of_tasks(rows: int, tasks: int) -> torch.Tensor | None:
    return meta(rows, dtype=torch.int64) if tasks else None


def scores(dtype: torch.dtype, tasks: int, queries: int, passages: int) -> Callable[[], object]:
    branch, task = branches(dtype, tasks), rows_of_tasks(queries, tasks)
    a, b = meta(queries, WIDTH, dtype=dtype), meta(passages, WIDTH, dtype=dtype)
    dz = meta(queries, passages, dtype=torch.float32)

    def call() -> None:
        triton_backend.iem_scores(a, b, branch, task)
        triton_backend.iem_scores_backward(dz, a, b, branch, task, (True, True))

    return call


def pairs(dtype: torch.dtype, tasks: int, features: bool, rows: int) -> Callable[[], object]:
    branch, task, a = branches(dtype, tasks), rows_of_tasks(rows, tasks), meta(rows, WIDTH, dtype=dtype)
    dz, dfeatures = meta(rows, dtype=torch.float32), torch.empty_like(a) if features else None

    def call() -> None:
        triton_backend.iem_pairs(a, a, branch, task, features)
        triton_backend.iem_pairs_backward(dz, dfeatures, a, a, branch, task, (True, True))

    return call


def topk(dtype: torch.dtype, tasks: int, queries: int, passages: int) -> Callable[[], object]:
    a, b = meta(queries, WIDTH, dtype=dtype), meta(passages, WIDTH, dtype=dtype)
    task = rows_of_tasks(queries, tasks)
    return partial(triton_backend.iem_topk, a, b, branches(dtype, tasks), task, min(3, passages))


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float32))
@pytest.mark.parametrize("chunk", (1 << 18, 50))
@pytest.mark.parametrize("tasks", (0, 2))
def test_interaction_compiles_once_for_all_sizes(dtype, chunk, tasks, monkeypatch):
    monkeypatch.setattr(interaction, "_CHUNK", chunk)
    monkeypatch.setattr(gpu_topk, "_TOPK_BYTES", 8 * chunk)
    assert_compiled_once([scores(dtype, tasks, *sizes) for sizes in SIZES])
    assert_compiled_once([topk(dtype, tasks, *sizes) for sizes in SIZES])
    for features in (False, True):
        assert_compiled_once([pairs(dtype, tasks, features, rows) for rows in (70, 1, 16, 7, 120)])
