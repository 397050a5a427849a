"""Interaction scores of all pairs: parity, a task for each query, gradients, memory, the operator."""

from functools import partial

import pytest
import torch

import d2llm_kernels as dk
from d2llm_kernels import reference
from tests import adversarial
from tests.contract import assert_parity
from tests.kernels.cases import (
    BACKENDS,
    CASES,
    NAMES,
    PARITY,
    TASKS,
    apart,
    assert_same_on_any_threads,
    by_rows,
    gradients_but,
    largest_allocation,
    needs_even_products,
    opcheck_backward,
    pair_inputs,
    saved_for_backward,
    task_inputs,
    with_gradients,
)


def scores(*tensors, backend="folded", task=None):
    return (dk.functional.iem_scores(*tensors, backend=backend, task=task),)


def literal(*tensors):
    return (reference.iem_scores(*tensors),)


@pytest.mark.parametrize("backend,dtype,threads", PARITY, indirect=["threads"])
@pytest.mark.parametrize("queries,passages,hidden", [(1, 1, 64), (3, 63, 50), (5, 257, 33), (300, 2, 16), (2, 700, 8)])
def test_parity(queries, passages, hidden, backend, dtype, threads):
    assert_parity(partial(scores, backend=backend), literal, pair_inputs(queries, passages, hidden), dtype)


@pytest.mark.parametrize("backend,dtype,threads", PARITY, indirect=["threads"])
def test_parity_of_tasks(backend, dtype, threads):
    kernel = partial(scores, backend=backend, task=TASKS)
    assert_parity(kernel, by_rows(literal, given=False), task_inputs(), dtype)


@pytest.mark.parametrize("backend,dtype", CASES)
@pytest.mark.parametrize("queries,passages,hidden", [(1, 1, 1), (5, 63, 50), (7, 130, 33), (40, 3, 16)])
def test_whole_numbers_are_exact(queries, passages, hidden, backend, dtype):
    """Every sum is, in any order; gradients too where the relu's argument is exactly 0."""
    tensors = adversarial.pairs(queries, passages, hidden)
    (got,) = scores(*(t.to(dtype) for t in tensors), backend=backend)
    assert torch.equal(got.double(), reference.iem_scores(*tensors))
    assert_parity(partial(scores, backend=backend), literal, tensors, dtype)


def test_gradcheck():
    assert torch.autograd.gradcheck(scores, tuple(t.requires_grad_() for t in pair_inputs(3, 4, 6)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("queries,passages", [(0, 4), (4, 0), (0, 0)])
def test_no_queries_or_no_passages(queries, passages, backend):
    tensors = [t.float().requires_grad_() for t in pair_inputs(queries, passages, 8)]
    (out,) = scores(*tensors, backend=backend)
    assert out.shape == (queries, passages)
    out.sum().backward()
    assert all((t.grad == 0).all() for t in tensors)


@pytest.mark.parametrize("backend,dtype", CASES)
@pytest.mark.parametrize("hidden", (100, 9, 33))
@pytest.mark.parametrize("passages", (1, 5, 17, 257, 300))
def test_a_score_does_not_depend_on_place_or_neighbours(passages, hidden, backend, dtype):
    needs_even_products(backend, dtype, hidden)
    score = partial(scores, backend=backend)
    a, b, *weights = (t.to(dtype) for t in pair_inputs(3, 1, hidden))
    alone = score(a, b, *weights)[0]
    crowd = torch.cat([b.expand(passages, -1), torch.randn(7, hidden).to(dtype)])
    assert torch.equal(score(a, crowd, *weights)[0][:, :passages], alone.expand(3, passages))
    assert torch.equal(score(a[1:2], b, *weights)[0], alone[1:2])


@pytest.mark.cpu
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_bit_equal_for_any_number_of_threads(dtype):
    tensors = [t.to(dtype) for t in pair_inputs(3, 131, 70)]
    assert_same_on_any_threads(lambda: scores(*tensors, backend="cpu"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_changed_in_place_count_at_once(backend):
    a, b, *branch = (t.float() for t in pair_inputs(2, 3, 20))
    scores(a, b, *branch, backend=backend)
    # No version counter sees a change through `.data`.
    for tensor in branch:
        tensor.data.add_(0.5)
    changed = scores(a, b, *branch, backend=backend)[0]
    assert torch.equal(changed, scores(a, b, *(t.clone() for t in branch), backend=backend)[0])


@pytest.mark.parametrize("backend", ("auto", "folded", "reference"))
def test_scores_of_half_precision_come_in_float32(backend):
    tensors = [t.bfloat16() for t in pair_inputs(3, 4, 8)]
    assert scores(*tensors, backend=backend)[0].dtype == torch.float32


def test_half_precision_index_against_float32_weights():
    a, b, *weights = (t.float() for t in pair_inputs(3, 40, 16))
    (mixed,) = scores(a, b.bfloat16(), *weights)
    torch.testing.assert_close(mixed, reference.iem_scores(a, b.bfloat16().float(), *weights), rtol=1e-5, atol=1e-5)


def test_non_contiguous_inputs_and_expanded_gradients():
    a, b, *weights = pair_inputs(4, 6, 8)
    doubled = torch.stack([a, a], -1)[..., 0].requires_grad_()
    scores(doubled, b.T.contiguous().T, *weights)[0].sum().backward()
    plain = a.clone().requires_grad_()
    reference.iem_scores(plain, b, *weights).sum().backward()
    torch.testing.assert_close(doubled.grad, plain.grad, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_weights(backend):
    a, b, *weights = (t.float() for t in pair_inputs(3, 5, 32))
    call = partial(scores, backend=backend)
    plain, strided = (with_gradients(call, (a, b, *some)) for some in (weights, apart(weights)))
    assert all(torch.equal(one, two) for one, two in zip(plain, strided, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_the_inputs_are_saved_for_backward(backend):
    tensors = [t.float().requires_grad_() for t in pair_inputs(64, 64, 32)]
    kept = saved_for_backward(lambda: scores(*tensors, backend=backend))
    assert 0 < sum(kept.values()) <= sum(t.untyped_storage().nbytes() for t in tensors)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_allocation_beyond_the_tiles_and_the_scores(backend):
    tensors = [t.float().requires_grad_() for t in pair_inputs(64, 256, 64)]
    largest = largest_allocation(lambda: scores(*tensors, backend=backend)[0].sum().backward())
    tile, matrix = 256 * torch.get_num_threads() * 64 * 4, 64 * 256 * 4
    assert 0 < largest <= max(tile, matrix)
    assert largest < 64 * 256 * 64 * 4 / 4, "of the order of Nq * Np * F"


@pytest.mark.parametrize("backend", (*BACKENDS, "reference"))
def test_tasks_apart_and_all_rows_by_every_branch_are_the_same(backend, monkeypatch):
    call, tensors = partial(scores, backend=backend, task=TASKS), [t.float() for t in task_inputs(passages=7)]
    apart = with_gradients(call, tensors)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    for one, two in zip(apart, with_gradients(call, tensors), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", (*BACKENDS, "reference"))
@pytest.mark.parametrize("task", (0, 2))
def test_equal_tasks_are_the_branch_alone(task, backend):
    a, b, weight, bias, *out = (t.float() for t in task_inputs())
    call, tasks = partial(dk.functional.iem_scores, a, b, backend=backend), torch.full((7,), task)
    expected = call(weight[task], bias[task], *out)
    assert torch.equal(call(weight, bias, *out, task=tasks), expected)
    assert torch.equal(call(weight[task, None], bias[task, None], *out, task=tasks * 0), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_branch_without_rows_gets_gradients_of_zero(backend):
    gradients = with_gradients(partial(scores, backend=backend, task=TASKS), [t.float() for t in task_inputs()])
    dweight, dbias = gradients[3:5]
    assert (dweight[1] == 0).all() and (dbias[1] == 0).all() and (dweight[2] != 0).any()


@pytest.mark.parametrize("backend", (*BACKENDS, "reference"))
@pytest.mark.parametrize("tasks", (False, True))
@pytest.mark.parametrize("frozen", (NAMES[:2], NAMES[2:], ("a",), ("weight",), NAMES[:5]))
def test_a_gradient_that_is_not_wanted_changes_nothing_about_the_others(frozen, tasks, backend):
    a, b, weight, bias, *out = task_inputs(passages=7)
    tensors = (a, b, weight, bias, *out) if tasks else (a, b, weight[0], bias[0], *out)
    call = partial(scores, backend=backend, task=TASKS if tasks else None)
    every, some = gradients_but((), call, tensors), gradients_but(frozen, call, tensors)
    for name, one, two in zip(NAMES, every, some, strict=True):
        assert two is None if name in frozen else torch.equal(one, two)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tasks", (False, True))
def test_opcheck(tasks, backend):
    leaves = [t.float().requires_grad_() for t in (task_inputs(4, 6, 8) if tasks else pair_inputs(4, 6, 8))]
    plain, task = [t.detach() for t in leaves], TASKS[:4] if tasks else None
    torch.library.opcheck(torch.ops.d2llm.iem_scores, (*leaves, task, backend))
    opcheck_backward(torch.ops.d2llm.iem_scores_backward, torch.randn(4, 6), *plain, task, backend)


@pytest.mark.parametrize(
    "position,tensor,name",
    [
        (0, torch.zeros(2, 7), "a"),
        (0, torch.zeros(8), "a"),
        (1, torch.zeros(3, 8, dtype=torch.int64), "b"),
        (2, torch.zeros(8, 7), "weight"),
        (3, torch.zeros(7), "bias"),
        (4, torch.zeros(8), "out_weight"),
        (5, torch.zeros(2), "out_bias"),
    ],
)
def test_bad_arguments_are_named(position, tensor, name):
    tensors = list(pair_inputs(2, 3, 8))
    tensors[position] = tensor
    with pytest.raises(dk.ArgumentError, match=f"^{name}: expected"):
        scores(*tensors)


@pytest.mark.parametrize(
    "task,message",
    [
        (torch.tensor([0, 1, 2, 3, 0, 0, 0]), r"task: expected values in 0\.\.2, got 0\.\.3"),
        (torch.tensor([0, -1, 2, 0, 0, 0, 0]), r"task: expected values in 0\.\.2, got -1\.\.2"),
        (torch.zeros(6, dtype=torch.int64), r"task: expected a shape that broadcasts to \(7,\), got \(6,\)"),
        (torch.zeros(7), "task: expected an integer tensor, got torch.float32"),
    ],
)
def test_bad_tasks_are_named(task, message):
    with pytest.raises(dk.ArgumentError, match=message):
        scores(*task_inputs(), task=task)


@pytest.mark.parametrize("call", (dk.functional.iem_scores, dk.functional.iem_pairs))
def test_a_width_of_zero_is_refused(call):
    with pytest.raises(dk.ArgumentError, match="^weight: expected a width F of at least 1"):
        call(*pair_inputs(3, 3, 0))


def test_branches_must_be_stacked():
    a, b, weight, bias, *out = task_inputs()
    with pytest.raises(dk.ArgumentError, match=r"weight: expected shape \(T, F, F\), got \(20, 20\)"):
        scores(a, b, weight[0], bias[0], *out, task=TASKS)
    with pytest.raises(dk.ArgumentError, match=r"weight: expected shape \(F, F\), got \(3, 20, 20\)"):
        scores(a, b, weight, bias, *out)


@pytest.mark.parametrize("name", NAMES)
def test_numbers_that_are_not_real_are_refused(name):
    """Found by the campaign: complex biases came as far as torch's own errors."""
    tensors = dict(zip(NAMES, pair_inputs(2, 3, 8), strict=True))
    for dtype in (torch.complex64, torch.int64):
        with pytest.raises(dk.ArgumentError, match=f"^{name}: expected a floating point tensor, got {dtype}"):
            dk.functional.iem_scores(**tensors | {name: tensors[name].to(dtype)}, backend="reference")
