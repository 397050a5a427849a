"""What Triton would compile a kernel anew for, found without a GPU: batches of other sizes must not be among it.

Triton keeps a compiled kernel for each set of dtypes, constants and options, and for what it finds of the arguments by
itself: whether an integer is 1 or a multiple of 16, whether a pointer is aligned. A size that changes from batch to
batch must not be among those, or training stops to compile in the middle of an epoch.
"""

from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch

pytest.importorskip("triton")

from d2llm_kernels.backends.gpu import interaction
from d2llm_kernels.backends.gpu import topk as gpu_topk
from d2llm_kernels.backends.triton import operations as triton
from d2llm_kernels.branch import Branch, InBatch
from tools.cross_compile import Launch, recorded, source

WIDTH = 64
# Queries and passages: ones, odd numbers, multiples of 16.
SIZES = ((3, 70), (1, 1), (16, 48), (1, 16), (7, 32), (32, 5))
# Batch and length: odd, even, multiples of 16, 1.
SHAPES = [(64, 256), (1, 256), (3, 77), (16, 1), (1, 1), (7, 48), (300, 2), (2000, 16)]

Variants = dict[str, set[tuple[object, ...]]]


def variants(call: Callable[[], object], arch: str = "sm_90") -> Variants:
    """What Triton would compile for ``call`` on meta tensors: by kernel, the variants of it."""
    launches: list[Launch] = []
    with recorded(arch, "", launches):
        call()
    found: Variants = {}
    for launch in launches:
        code, options = source(launch)
        key = (*code.signature.items(), *code.constants.items(), *_hashable(code.attrs), *options.items())
        found.setdefault(launch.kernel.__name__, set()).add(key)
    return found


def assert_compiled_once(calls: Sequence[Callable[[], object]], arch: str = "sm_90") -> None:
    """The first of these calls, which differ in sizes alone, compiles all that the others launch."""
    known = variants(calls[0], arch)
    assert known, "nothing was launched"
    for number, call in enumerate(calls[1:], 1):
        for kernel, found in variants(call, arch).items():
            (first, *_), new = known[kernel], found - known[kernel]
            assert not new, f"{kernel} is compiled again for call {number}: {set(first) ^ set(new.pop())}"


def _hashable(attributes: dict[tuple[int, ...], list[list[object]]]) -> list[tuple[object, ...]]:
    return [(place, *map(tuple, found)) for place, found in attributes.items()]


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
        triton.iem_scores(a, b, branch, task)
        triton.iem_scores_backward(dz, a, b, branch, task, (True, True))

    return call


def pairs(dtype: torch.dtype, tasks: int, features: bool, rows: int) -> Callable[[], object]:
    branch, task, a = branches(dtype, tasks), rows_of_tasks(rows, tasks), meta(rows, WIDTH, dtype=dtype)
    dz, dfeatures = meta(rows, dtype=torch.float32), torch.empty_like(a) if features else None

    def call() -> None:
        triton.iem_pairs(a, a, branch, task, features)
        triton.iem_pairs_backward(dz, dfeatures, a, a, branch, task, (True, True))

    return call


def topk(dtype: torch.dtype, tasks: int, queries: int, passages: int) -> Callable[[], object]:
    a, b = meta(queries, WIDTH, dtype=dtype), meta(passages, WIDTH, dtype=dtype)
    task = rows_of_tasks(queries, tasks)
    return partial(triton.iem_topk, a, b, branches(dtype, tasks), task, min(3, passages))


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
