"""Streaming top-k: exact, ties by the lower index, NaN last, a task for each query, bad k refused, the operator."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import d2llm_kernels as dk
from d2llm_kernels import reference
from d2llm_kernels.backends.folded import interaction
from tests import adversarial
from tests.kernels.cases import (
    BACKENDS,
    CASES,
    TASKS,
    apart,
    assert_same_on_any_threads,
    needs_even_products,
    pair_inputs,
    task_inputs,
)


def weights(hidden: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((hidden, hidden), (hidden,), (1, hidden), (1,))
    return [torch.randn(*shape, generator=generator) for shape in shapes]


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=40, deadline=None)
@given(queries=st.integers(0, 4), passages=st.integers(1, 200), data=st.data())
def test_equals_the_sorted_score_matrix(backend, queries, passages, data):
    needs_even_products(backend, torch.float32, 8)
    k = data.draw(st.integers(1, passages))
    distinct = data.draw(st.integers(1, passages))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    a = torch.randn(queries, 8, generator=generator)
    # Repeated passages make ties on purpose.
    b = torch.randn(distinct, 8, generator=generator)[torch.randint(distinct, (passages,), generator=generator)]
    original = interaction.tile_rows
    interaction.tile_rows = lambda device: 3
    try:
        values, indices = dk.functional.iem_topk(a, b, *weights(8), k, backend=backend)
        expected = reference.topk(dk.functional.iem_scores(a, b, *weights(8), backend=backend), k)
    finally:
        interaction.tile_rows = original
    assert indices.dtype == torch.int64
    torch.testing.assert_close(values, expected[0], rtol=1e-5, atol=1e-5)
    assert torch.equal(indices, expected[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_take_the_lower_index_across_blocks(backend):
    needs_even_products(backend, torch.float32, 16)
    a, b = torch.randn(3, 16), torch.randn(1, 16).expand(5000, 16)
    _, indices = dk.functional.iem_topk(a, b, *weights(16), 7, backend=backend)
    assert torch.equal(indices, torch.arange(7).expand(3, 7))


@pytest.mark.parametrize("backend,dtype", CASES)
@pytest.mark.parametrize("k", (1, 9, 300))
def test_passages_that_differ_and_score_alike_tie(k, backend, dtype):
    """Of whole numbers, whose scores are exact on every machine: what is equal is known beforehand."""
    tensors = adversarial.pairs(6, 300, 24)
    values, indices = dk.functional.iem_topk(*(t.to(dtype) for t in tensors), k, backend=backend)
    expected = reference.topk(reference.iem_scores(*tensors), k)
    assert torch.equal(values.double(), expected[0]) and torch.equal(indices, expected[1])


@pytest.mark.parametrize("backend", (*BACKENDS, "reference"))
def test_nan_counts_as_the_lowest(backend):
    a, b = torch.randn(2, 8), torch.randn(6, 8)
    b[1], b[4] = math.nan, math.nan
    values, indices = dk.functional.iem_topk(a, b, *weights(8), 6, backend=backend)
    assert (values[:, 4:] == -math.inf).all()
    assert torch.equal(indices[:, 4:], torch.tensor([[1, 4], [1, 4]]))
    assert values[:, :4].isfinite().all()


@pytest.mark.parametrize("k", (0, -1, 5, 1e-40, 2.0, float("nan"), True))
@pytest.mark.parametrize("backend", (*BACKENDS, "reference"))
def test_k_out_of_range_is_refused(k, backend):
    with pytest.raises(ValueError, match=r"^k: expected between 1 and the number of passages, 4, got"):
        dk.functional.iem_topk(torch.zeros(2, 8), torch.zeros(4, 8), *weights(8), k, backend=backend)


@pytest.mark.cpu
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_bit_equal_for_any_number_of_threads(dtype):
    tensors = [t.to(dtype) for t in pair_inputs(3, 131, 70)]
    assert_same_on_any_threads(lambda: dk.functional.iem_topk(*tensors, 9, backend="cpu"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_weights(backend):
    a, b, *branch = (t.float() for t in pair_inputs(3, 5, 32))
    plain, strided = (dk.functional.iem_topk(a, b, *some, 3, backend=backend) for some in (branch, apart(branch)))
    assert torch.equal(plain[0], strided[0]) and torch.equal(plain[1], strided[1])


@pytest.mark.parametrize("backend", (*BACKENDS, "reference"))
@pytest.mark.parametrize("task", (0, 2))
def test_equal_tasks_are_the_branch_alone(task, backend):
    a, b, weight, bias, *out = (t.float() for t in task_inputs())
    values, indices = dk.functional.iem_topk(a, b, weight, bias, *out, 5, backend, torch.full((7,), task))
    expected = dk.functional.iem_topk(a, b, weight[task], bias[task], *out, 5, backend)
    assert torch.equal(values, expected[0]) and torch.equal(indices, expected[1])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tasks", (False, True))
def test_opcheck(tasks, backend):
    tensors = [t.float() for t in (task_inputs(4, 6, 8) if tasks else pair_inputs(4, 6, 8))]
    torch.library.opcheck(torch.ops.d2llm.iem_topk, (*tensors, TASKS[:4] if tasks else None, 3, backend))
