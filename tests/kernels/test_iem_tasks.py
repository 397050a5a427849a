"""A task for each row: the same as its branch alone, on every backend; nothing read from the host on a device."""

import math
from functools import partial

import pytest
import torch

import d2llm_kernels as dk
from tests.contract import assert_parity
from tests.kernels.cases import BACKENDS, PARITY, with_gradients

TASKS = torch.tensor([2, 0, 0, 2, 0, 2, 0])


def inputs(queries: int = 7, passages: int = 40, hidden: int = 20, tasks: int = 3):
    """Branch 1 has no rows."""
    generator = torch.Generator().manual_seed(queries + passages)
    shapes = ((queries, hidden), (passages, hidden), (tasks, hidden, hidden), (tasks, hidden), (1, hidden), (1,))
    tensors = [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]
    tensors[2] /= math.sqrt(hidden)
    return tensors


def scores(*tensors, backend="folded", task=TASKS):
    return (dk.functional.iem_scores(*tensors, backend=backend, task=task),)


def pairs(*tensors, backend="folded", task=TASKS):
    return dk.functional.iem_pairs(*tensors, return_features=True, backend=backend, task=task)


def literally(call, features=False):
    """Row by row by the branch of its task."""

    def run(a, b, weight, bias, out_weight, out_bias):
        rows = [
            call(a[i : i + 1], b[i : i + 1] if features else b, weight[t], bias[t], out_weight, out_bias)
            for i, t in enumerate(TASKS.tolist())
        ]
        return tuple(map(torch.cat, zip(*rows, strict=True)))

    return run


LITERAL_SCORES = literally(lambda *t: (dk.reference.iem_scores(*t),))
LITERAL_PAIRS = literally(dk.reference.iem_pairs, features=True)


@pytest.mark.parametrize("backend,dtype,threads", PARITY, indirect=["threads"])
def test_parity(backend, dtype, threads):
    assert_parity(partial(scores, backend=backend), LITERAL_SCORES, inputs(), dtype)
    assert_parity(partial(pairs, backend=backend), LITERAL_PAIRS, inputs(passages=7), dtype)


@pytest.mark.parametrize("backend", (*BACKENDS, "reference"))
def test_tasks_apart_and_all_rows_by_every_branch_are_the_same(backend, monkeypatch):
    apart = [
        with_gradients(partial(call, backend=backend), [t.float() for t in inputs(passages=7)])
        for call in (scores, pairs)
    ]
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    chosen = [
        with_gradients(partial(call, backend=backend), [t.float() for t in inputs(passages=7)])
        for call in (scores, pairs)
    ]
    for one, two in zip((*apart[0], *apart[1]), (*chosen[0], *chosen[1]), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", (*BACKENDS, "reference"))
@pytest.mark.parametrize("task", (0, 2))
def test_equal_tasks_are_the_branch_alone(task, backend):
    a, b, weight, bias, *out = (t.float() for t in inputs())
    tasks, stacked, branch = torch.full((7,), task), (weight, bias, *out), (weight[task], bias[task], *out)
    for call, right in ((dk.functional.iem_scores, b), (dk.functional.iem_pairs, b[:7])):
        expected = call(a, right, *branch, backend=backend)
        assert torch.equal(call(a, right, *stacked, backend=backend, task=tasks), expected)
        assert torch.equal(
            call(a, right, *(t[task, None] for t in stacked[:2]), *out, task=tasks * 0, backend=backend), expected
        )
    values, indices = dk.functional.iem_topk(a, b, *stacked, 5, backend, tasks)
    expected = dk.functional.iem_topk(a, b, *branch, 5, backend)
    assert torch.equal(values, expected[0]) and torch.equal(indices, expected[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_branch_without_rows_gets_gradients_of_zero(backend):
    gradients = with_gradients(partial(scores, backend=backend), [t.float() for t in inputs()])
    dweight, dbias = gradients[3:5]
    assert (dweight[1] == 0).all() and (dbias[1] == 0).all() and (dweight[2] != 0).any()


def test_tasks_broadcast_over_pairs_and_come_in_any_integers():
    a, b, *weights = inputs(passages=21)
    grouped = partial(dk.functional.iem_pairs, a[:, None], b.view(7, 3, -1), *weights)
    expected = grouped(task=TASKS[:, None].expand(7, 3))
    for dtype in (torch.int32, torch.uint8):
        assert torch.equal(grouped(task=TASKS[:, None].to(dtype)), expected)
    strided = torch.stack([TASKS, TASKS * 0], -1)[:, 0]
    assert torch.equal(grouped(task=strided[:, None]), expected)


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
        scores(*inputs(), task=task)


def test_branches_must_be_stacked():
    a, b, weight, bias, *out = inputs()
    with pytest.raises(dk.ArgumentError, match=r"weight: expected shape \(T, F, F\), got \(20, 20\)"):
        scores(a, b, weight[0], bias[0], *out)
    with pytest.raises(dk.ArgumentError, match=r"weight: expected shape \(F, F\), got \(3, 20, 20\)"):
        scores(a, b, weight, bias, *out, task=None)


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck(backend):
    leaves = [t.float().requires_grad_() for t in inputs(4, 4, 8)]
    task = TASKS[:4]
    torch.library.opcheck(torch.ops.d2llm.iem_scores, (*leaves, task, backend))
    torch.library.opcheck(torch.ops.d2llm.iem_pairs, (*leaves, task, True, backend))
    plain = [t.detach() for t in leaves]
    torch.library.opcheck(torch.ops.d2llm.iem_topk, (*plain, task, 3, backend))
    for wanted in ((True, True), (True, False), (False, True)):
        torch.library.opcheck(torch.ops.d2llm.iem_scores_backward, (torch.randn(4, 4), *plain, task, backend, wanted))
        torch.library.opcheck(torch.ops.d2llm.iem_pairs_backward, (torch.randn(4), None, *plain, task, backend, wanted))


def test_nothing_of_a_device_tensor_is_read_from_the_host():
    """A tensor of the meta device has no values: to read one raises."""
    with torch.device("meta"):
        iem = dk.IEM(32, 16)
        q, p, task = torch.randn(4, 32), torch.randn(6, 32), torch.zeros(4, dtype=torch.int64)
        z, features = iem(q, p[:4], task, return_features=True)
        (z.sum() + features.sum() + iem.score_all(q, p, task).sum()).backward()
        iem.topk(iem.project_queries(q), iem.project_passages(p), 2, task)


@pytest.mark.parametrize("backend", (*BACKENDS, "reference"))
def test_compiles_without_graph_breaks_for_any_size(backend):
    torch.manual_seed(0)
    iem = dk.IEM(16, 8, init="xavier", backend=backend)

    def step(q, p, task):
        z, features = iem(q[:, None], p.view(len(q), -1, 16), task[:, None], return_features=True)
        return z.sum() + features.square().sum() + iem.score_all(q, p, task).logsumexp(1).sum()

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for queries in (3, 4, 7):
        q, p = torch.randn(queries, 16, requires_grad=True), torch.randn(queries * 5, 16)
        task = torch.arange(queries) % 2
        wanted = (q, *iem.parameters())
        expected = torch.autograd.grad(step(q, p, task), wanted)
        got = torch.autograd.grad(compiled(q, p, task), wanted)
        for one, two in zip(got, expected, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)
