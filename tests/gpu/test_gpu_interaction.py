"""Interaction scores on GPUs, by every backend: all pairs, given pairs, top-k; parity, gradients, determinism."""

import math
from functools import partial

import pytest
import torch

import d2llm_kernels as dk
from d2llm_kernels import reference
from d2llm_kernels.backends.gpu import interaction, topk
from tests.contract import assert_parity, guarded, run
from tests.gpu.conftest import BFLOAT16, FLOAT16
from tests.kernels.cases import apart, with_gradients

pytestmark = pytest.mark.usefixtures("backend")

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def scores(*tensors, task=None):
    return (dk.functional.iem_scores(*tensors, task=task),)


def pairs(*tensors, task=None):
    return dk.functional.iem_pairs(*tensors, return_features=True, task=task)


def assert_equal(one, two):
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("dtype", (torch.float32, FLOAT16, BFLOAT16))
@pytest.mark.parametrize("queries,passages,hidden", [(1, 3, 64), (3, 63, 50), (2, 130, 96), (9, 40, 64)])
def test_scores_parity(make_pairs, queries, passages, hidden, dtype):
    assert_parity(scores, lambda *t: (reference.iem_scores(*t),), make_pairs(queries, passages, hidden), dtype)


@pytest.mark.parametrize("dtype", (torch.float32, FLOAT16, BFLOAT16))
@pytest.mark.parametrize("rows,hidden", [(3, 64), (63, 50), (100, 16)])
def test_pairs_parity(make_pairs, rows, hidden, dtype):
    assert_parity(pairs, reference.iem_pairs, make_pairs(rows, rows, hidden), dtype)


@pytest.mark.real
@pytest.mark.parametrize("dtype", DTYPES)
def test_parity_at_full_width(make_pairs, dtype):
    assert_parity(scores, lambda *t: (reference.iem_scores(*t),), make_pairs(33, 300, 512), dtype)
    assert_parity(pairs, reference.iem_pairs, make_pairs(1000, 1000, 512), dtype)


def test_parity_over_several_chunks(make_pairs, monkeypatch):
    monkeypatch.setattr(interaction, "_CHUNK", 50)
    for queries, passages in ((3, 70), (9, 20)):
        tensors = make_pairs(queries, passages, 48)
        assert_parity(scores, lambda *t: (reference.iem_scores(*t),), tensors, torch.float32)
    assert_parity(pairs, reference.iem_pairs, make_pairs(120, 120, 48), torch.float32)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_a_score_does_not_depend_on_place_or_neighbours(make_pairs, dtype):
    a, b, *weights = make_pairs(3, 1, 100, dtype)
    alone = scores(a, b, *weights)[0]
    crowd = torch.cat([b.expand(70, -1), torch.randn_like(b.expand(7, -1))])
    assert torch.equal(scores(a, crowd, *weights)[0][:, :70], alone.expand(3, 70))
    assert torch.equal(scores(a[1:2], b, *weights)[0], alone[1:2])
    one = dk.functional.iem_pairs(a[1:2], b, *weights)
    assert torch.equal(one, alone[1])


def test_groups_broadcast_and_features_are_optional(make_pairs):
    a, b, *weights = make_pairs(4, 12, 32, torch.float32)
    groups = b.view(4, 3, 32)
    z, features = dk.functional.iem_pairs(a[:, None], groups, *weights, return_features=True)
    expected = reference.iem_pairs(a[:, None], groups, *weights)
    torch.testing.assert_close(z, expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(features, expected[1], rtol=1e-5, atol=1e-5)
    assert torch.equal(z, dk.functional.iem_pairs(a[:, None], groups, *weights))


def test_half_precision_index_against_float32_weights(make_pairs):
    a, b, *weights = make_pairs(3, 40, 32, torch.float32)
    mixed = scores(a, b.bfloat16(), *weights)[0]
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, reference.iem_scores(a, b.bfloat16().float(), *weights), rtol=1e-5, atol=1e-5)


def test_repeated_runs_are_bit_equal(make_pairs, device):
    tensors = make_pairs(5, 70, 48, torch.float32)
    first = run(scores, tensors)
    for _ in range(250 if device.type == "cuda" else 2):
        again = run(scores, tensors)
        assert_equal((*first[0], *first[1]), (*again[0], *again[1]))


def test_strided_inputs_and_expanded_gradients(make_pairs):
    a, b, *weights = make_pairs(4, 6, 32, torch.float32)
    outputs = []
    for left, right in ((a, b), (torch.stack([a, a], -1)[..., 0], guarded(b))):
        leaf = left.detach().requires_grad_()
        z = scores(leaf, right, *weights)[0]
        z.sum().backward()
        outputs.append((z, leaf.grad))
    assert_equal(*outputs)


def test_strided_weights(make_pairs):
    a, b, *weights = make_pairs(3, 5, 32, torch.float32)
    for call, right in ((scores, b), (pairs, b[:3])):
        assert_equal(*(with_gradients(call, (a, right, *some)) for some in (weights, apart(weights))))
    assert_equal(*(dk.functional.iem_topk(a, b, *some, 3) for some in (weights, apart(weights))))


TASKS = torch.tensor([2, 0, 0, 2, 0, 2, 0])


@pytest.fixture
def make_tasks(make_pairs):
    """Makes pairs, and stacked branches for them of which the middle one has no rows."""

    def inputs(passages, hidden, dtype=torch.float64):
        a, b, *_ = make_pairs(len(TASKS), passages, hidden, dtype)
        weights = [make_pairs(number, 3, hidden, dtype)[2:] for number in (1, 2, 3)]
        weight, bias = (torch.stack([branch[part] for branch in weights]) for part in range(2))
        return [a, b, weight, bias, *weights[0][2:]]

    return inputs


@pytest.mark.parametrize(
    "dtype,chunk",
    [
        pytest.param(torch.float32, 1 << 18, marks=pytest.mark.rest),
        (torch.float16, 1 << 18),
        (torch.bfloat16, 1 << 18),
        (torch.float32, 70),
    ],
)
def test_tasks_parity(make_tasks, monkeypatch, dtype, chunk):
    monkeypatch.setattr(interaction, "_CHUNK", chunk)

    def literally(call, given):
        def by_rows(a, b, weight, bias, *out):
            rows = [
                call(a[i, None], b[i, None] if given else b, weight[t], bias[t], *out)
                for i, t in enumerate(TASKS.tolist())
            ]
            return tuple(map(torch.cat, zip(*rows, strict=True)))

        return by_rows

    every, given = make_tasks(40, 50), make_tasks(7, 50)
    task = TASKS.to(every[0].device)
    literal = literally(lambda *t: (reference.iem_scores(*t),), given=False)
    assert_parity(partial(scores, task=task), literal, every, dtype)
    assert_parity(partial(pairs, task=task), literally(reference.iem_pairs, given=True), given, dtype)


def test_tasks_sorted_mixed_and_alone_are_the_same_to_the_bit(make_tasks):
    a, b, weight, bias, *out = make_tasks(40, 48, torch.float32)
    task = TASKS.to(a.device)
    for call, right in ((scores, b), (pairs, b[:7])):
        mixed = call(a, right, weight, bias, *out, task=task)
        for number in (0, 2):
            here = task == number
            # Of equal tasks, of one task by its number, and in an order in which each comes in one piece.
            alone = call(a, right, weight[number], bias[number], *out)
            equal = call(a, right, weight, bias, *out, task=torch.full_like(task, number))
            assert_equal(alone, equal)
            assert_equal([part[here] for part in mixed], [part[here] for part in alone])
        order = task.argsort(stable=True)
        rows = right if call is scores else right[order]
        together = call(a[order], rows, weight, bias, *out, task=task[order])
        assert_equal([part[order] for part in mixed], together)
    found = dk.functional.iem_topk(a, b, weight, bias, *out, 5, task=task)
    assert_equal(found, reference.topk(scores(a, b, weight, bias, *out, task=task)[0], 5))


def test_gradients_of_equal_tasks_are_those_of_the_branch(make_tasks):
    a, b, weight, bias, *out = make_tasks(40, 48, torch.float32)
    task = torch.full_like(TASKS, 2).to(a.device)
    for call, right in ((scores, b), (pairs, b[:7])):
        one = with_gradients(call, (a, right, weight[2], bias[2], *out))
        several = with_gradients(partial(call, task=task), (a, right, weight, bias, *out))
        dweight, dbias = len(several) - 4, len(several) - 3
        assert all((several[part][:2] == 0).all() for part in (dweight, dbias))
        several[dweight], several[dbias] = several[dweight][2], several[dbias][2]
        for got, expected in zip(several, one, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_a_task_without_a_branch_counts_as_the_nearest(make_tasks, backend):
    tensors = make_tasks(9, 16, torch.float32)
    task = torch.tensor([-3, 9, 1, 1 << 40, -1, 2, 0], device=tensors[0].device)
    # Past the checks, which refuse it in a tensor on the CPU.
    known = torch.ops.d2llm.iem_scores(*tensors, task.clamp(0, 2), backend)
    assert torch.equal(torch.ops.d2llm.iem_scores(*tensors, task, backend), known)
    plain = torch.ops.d2llm.iem_scores_backward(known, *tensors, task.clamp(0, 2), backend, (True, True))
    assert_equal(torch.ops.d2llm.iem_scores_backward(known, *tensors, task, backend, (True, True)), plain)


@pytest.mark.parametrize("wanted", ((True, False), (False, True)))
def test_gradients_on_demand_are_the_same(make_pairs, backend, wanted):
    tensors = make_pairs(4, 9, 32, torch.float32)
    dz = torch.randn(4, 9, device=tensors[0].device)
    every = torch.ops.d2llm.iem_scores_backward(dz, *tensors, None, backend, (True, True))
    some = torch.ops.d2llm.iem_scores_backward(dz, *tensors, None, backend, wanted)
    for number, (one, two) in enumerate(zip(every, some, strict=True)):
        assert torch.equal(one, two) if wanted[number >= 2] else two.numel() == 0


@pytest.mark.parametrize("queries,passages", [(0, 4), (4, 0), (0, 0)])
def test_no_queries_or_no_passages(make_pairs, queries, passages):
    (z,), gradients = run(scores, make_pairs(queries, passages, 16, torch.float32))
    assert z.shape == (queries, passages) and all((g == 0).all() for g in gradients)


@pytest.mark.float64
def test_gradcheck(make_pairs):
    tensors = tuple(t.requires_grad_() for t in make_pairs(3, 4, 6))
    assert torch.autograd.gradcheck(scores, tensors, fast_mode=True)
    rows = tuple(t.requires_grad_() for t in make_pairs(5, 5, 6))
    assert torch.autograd.gradcheck(pairs, rows, fast_mode=True)


def test_opcheck(make_pairs, backend):
    leaves = [t.requires_grad_() for t in make_pairs(4, 6, 16, torch.float32)]
    a, b, *weights = leaves
    torch.library.opcheck(torch.ops.d2llm.iem_scores, (*leaves, None, backend))
    torch.library.opcheck(
        torch.ops.d2llm.iem_pairs, (a, b.detach()[:4].requires_grad_(), *weights, None, True, backend)
    )
    torch.library.opcheck(torch.ops.d2llm.iem_topk, (*(t.detach() for t in leaves), None, 3, backend))


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("queries,k", [(1, 1), (3, 20), (2, 300)])
def test_topk_is_exact_and_ties_take_the_lower_index(make_pairs, monkeypatch, queries, k, dtype):
    monkeypatch.setattr(topk, "_TOPK_BYTES", 8 * queries * 60)
    a, b, *weights = make_pairs(queries, 300, 16, dtype)
    b[100:200] = b[:100]
    b[7] = math.nan
    values, indices = dk.functional.iem_topk(a, b, *weights, k)
    expected = reference.topk(scores(a, b, *weights)[0], k)
    assert torch.equal(values, expected[0]) and torch.equal(indices, expected[1])


def test_nan_stays_nan(make_pairs):
    a, b, *weights = make_pairs(2, 5, 32, torch.float32)
    b[3, 7] = math.nan
    z, features = dk.functional.iem_pairs(a[:1], b, *weights, return_features=True)
    expected = reference.iem_pairs(a[:1], b, *weights)
    assert torch.equal(z.isnan(), expected[0].isnan()) and torch.equal(features.isnan(), expected[1].isnan())
    assert scores(a, b, *weights)[0][:, 3].isnan().all()


def test_topk_orders_negative_scores_and_both_zeros(make_pairs):
    a, b, *weights = make_pairs(1, 64, 16, torch.float32)
    weights[2].zero_()
    for bias in (0.0, -0.0, -3.5):
        weights[3].fill_(bias)
        values, indices = dk.functional.iem_topk(a, b, *weights, 5)
        assert torch.equal(indices, torch.arange(5, device=a.device)[None]) and (values == bias).all()


@pytest.mark.real
def test_more_than_2_to_the_31_elements(make_pairs, device):
    a, b, *weights = make_pairs(1, 1000, 16, torch.bfloat16)
    crowd = b.repeat(2200, 1)
    z = scores(a.expand(1000, -1), crowd, *weights)[0]
    assert z.numel() > 2**31
    assert torch.equal(z[-1, -1000:], scores(a, b, *weights)[0][0])


@pytest.mark.real
def test_peak_memory_of_training_holds_no_tensor_of_all_pairs_times_features(device):
    size, hidden = 4096, 512
    a, b = (torch.randn(size, hidden, device=device, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    shapes = ((hidden, hidden), (hidden,), (1, hidden), (1,))
    weights = [torch.randn(*s, device=device, dtype=torch.bfloat16, requires_grad=True) for s in shapes]
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    scores(a, b, *weights)[0].square().sum().backward()
    matrix = size * size * 4
    # z, its square and their gradients; a chunk of slopes; parts of sums.
    assert torch.cuda.max_memory_allocated() - before <= 5 * matrix + 3 * (1 << 28)
