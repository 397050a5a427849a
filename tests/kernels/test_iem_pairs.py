"""Interaction scores of given pairs, with their features: parity, a task for each pair, gradients, the operator."""

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
    by_rows,
    gradients_but,
    opcheck_backward,
    pair_inputs,
    task_inputs,
    with_gradients,
)


def pairs(*tensors, backend="folded", task=None):
    return dk.functional.iem_pairs(*tensors, return_features=True, backend=backend, task=task)


@pytest.mark.parametrize("backend,dtype,threads", PARITY, indirect=["threads"])
@pytest.mark.parametrize("rows,hidden", [(1, 64), (63, 50), (600, 16)])
def test_parity(rows, hidden, backend, dtype, threads):
    assert_parity(partial(pairs, backend=backend), reference.iem_pairs, pair_inputs(rows, rows, hidden), dtype)


@pytest.mark.parametrize("backend,dtype,threads", PARITY, indirect=["threads"])
def test_parity_of_tasks(backend, dtype, threads):
    kernel = partial(pairs, backend=backend, task=TASKS)
    assert_parity(kernel, by_rows(reference.iem_pairs, given=True), task_inputs(passages=7), dtype)


@pytest.mark.parametrize("backend,dtype", CASES)
@pytest.mark.parametrize("rows,hidden", [(1, 1), (5, 50), (7, 33), (3, 16)])
def test_whole_numbers_are_exact(rows, hidden, backend, dtype):
    """Every sum is, in any order; gradients too where the relu's argument is exactly 0."""
    tensors = adversarial.pairs(rows, rows, hidden)
    got, exact = pairs(*(t.to(dtype) for t in tensors), backend=backend), reference.iem_pairs(*tensors)
    assert all(torch.equal(one.double(), other) for one, other in zip(got, exact, strict=True))
    assert_parity(partial(pairs, backend=backend), reference.iem_pairs, tensors, dtype)


def test_gradcheck():
    assert torch.autograd.gradcheck(pairs, tuple(t.requires_grad_() for t in pair_inputs(5, 5, 6, seed=1)))


def test_they_equal_the_diagonal_of_the_scores_and_broadcast():
    a, b, *weights = pair_inputs(6, 6, 16)
    z = dk.functional.iem_pairs(a, b, *weights)
    full = dk.functional.iem_scores(a, b, *weights)
    torch.testing.assert_close(z, full.diagonal(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(dk.functional.iem_pairs(a[:, None], b, *weights), full, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", ("auto", "folded", "reference"))
def test_scores_of_half_precision_come_in_float32(backend):
    a, _, *weights = (t.bfloat16() for t in pair_inputs(3, 4, 8))
    z, features = pairs(a, a, *weights, backend=backend)
    assert z.dtype == torch.float32 and features.dtype == torch.bfloat16


@pytest.mark.cpu
@pytest.mark.parametrize("half_weight", (False, True))
def test_mixed_dtypes_are_promoted_and_gradients_come_in_the_inputs_dtypes(half_weight):
    a, b, *branch = (t.float() for t in pair_inputs(3, 3, 20))
    weight = branch[0].bfloat16() if half_weight else branch[0]
    leaves = [t.requires_grad_() for t in (a.bfloat16(), b.bfloat16(), weight, *branch[1:])]
    z, features = pairs(*leaves, backend="cpu")
    wide = dk.functional.iem_pairs(*(t.float() for t in leaves), backend="cpu")
    assert torch.equal(z, wide) and features.dtype == torch.promote_types(torch.bfloat16, weight.dtype)
    gradients = torch.autograd.grad(z.sum() + features.sum(), leaves)
    assert [g.dtype for g in gradients] == [t.dtype for t in leaves]


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_weights(backend):
    a, b, *weights = (t.float() for t in pair_inputs(3, 3, 32))
    call = partial(pairs, backend=backend)
    plain, strided = (with_gradients(call, (a, b, *some)) for some in (weights, apart(weights)))
    assert all(torch.equal(one, two) for one, two in zip(plain, strided, strict=True))


@pytest.mark.parametrize("backend", (*BACKENDS, "reference"))
def test_tasks_apart_and_all_rows_by_every_branch_are_the_same(backend, monkeypatch):
    call, tensors = partial(pairs, backend=backend, task=TASKS), [t.float() for t in task_inputs(passages=7)]
    apart = with_gradients(call, tensors)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    for one, two in zip(apart, with_gradients(call, tensors), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", (*BACKENDS, "reference"))
@pytest.mark.parametrize("task", (0, 2))
def test_equal_tasks_are_the_branch_alone(task, backend):
    a, b, weight, bias, *out = (t.float() for t in task_inputs(passages=7))
    call, tasks = partial(dk.functional.iem_pairs, a, b, backend=backend), torch.full((7,), task)
    expected = call(weight[task], bias[task], *out)
    assert torch.equal(call(weight, bias, *out, task=tasks), expected)
    assert torch.equal(call(weight[task, None], bias[task, None], *out, task=tasks * 0), expected)


def test_tasks_broadcast_over_pairs_and_come_in_any_integers():
    a, b, *weights = task_inputs(passages=21)
    grouped = partial(dk.functional.iem_pairs, a[:, None], b.view(7, 3, -1), *weights)
    expected = grouped(task=TASKS[:, None].expand(7, 3))
    for dtype in (torch.int32, torch.uint8):
        assert torch.equal(grouped(task=TASKS[:, None].to(dtype)), expected)
    strided = torch.stack([TASKS, TASKS * 0], -1)[:, 0]
    assert torch.equal(grouped(task=strided[:, None]), expected)


@pytest.mark.parametrize("backend", (*BACKENDS, "reference"))
@pytest.mark.parametrize("tasks", (False, True))
@pytest.mark.parametrize("frozen", (NAMES[:2], NAMES[2:], ("a",), ("weight",), NAMES[:5]))
def test_a_gradient_that_is_not_wanted_changes_nothing_about_the_others(frozen, tasks, backend):
    a, b, weight, bias, *out = task_inputs(passages=7)
    tensors = (a, b, weight, bias, *out) if tasks else (a, b, weight[0], bias[0], *out)
    call = partial(pairs, backend=backend, task=TASKS if tasks else None)
    every, some = gradients_but((), call, tensors), gradients_but(frozen, call, tensors)
    for name, one, two in zip(NAMES, every, some, strict=True):
        assert two is None if name in frozen else torch.equal(one, two)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tasks", (False, True))
def test_opcheck(tasks, backend):
    leaves = [t.float().requires_grad_() for t in (task_inputs(4, 4, 8) if tasks else pair_inputs(4, 4, 8))]
    plain, task = [t.detach() for t in leaves], TASKS[:4] if tasks else None
    for features in (True,) if tasks else (True, False):
        torch.library.opcheck(torch.ops.d2llm.iem_pairs, (*leaves, task, features, backend))
    slopes = (torch.randn(4), None if tasks else torch.randn(4, 8))
    opcheck_backward(torch.ops.d2llm.iem_pairs_backward, *slopes, *plain, task, backend)


def test_pairs_that_do_not_broadcast_are_named():
    a, b, *weights = pair_inputs(2, 3, 8)
    with pytest.raises(dk.ArgumentError, match=r"^b: expected a shape that broadcasts"):
        dk.functional.iem_pairs(a, b, *weights)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_infinite_projections_score_as_in_the_formula(backend, dtype):
    """Widths that fill no tile: what pads them must not meet an infinite unit."""
    draw = torch.Generator().manual_seed(0)
    for width in (1, 5, 16, 30, 64):
        for sign in (1, -1):
            a, b, weight, bias, out, last = (tensor.to(dtype) for tensor in pair_inputs(40, 40, width))
            weight = sign * weight.abs()
            a[torch.rand(a.shape, generator=draw) < 0.5] = torch.inf
            a[20:][torch.rand(20, width, generator=draw) < 0.5] = -torch.inf
            given = (a, b, weight, bias, out, last)
            expected = dk.functional.iem_pairs(*given, backend="reference").float()
            assert expected.isfinite().all() == (sign < 0)
            found = dk.functional.iem_pairs(*given, backend=backend).float()
            assert torch.equal(found.isnan(), expected.isnan()) and torch.equal(found.isinf(), expected.isinf())
