"""Interaction scores of all pairs and of given pairs: parity, gradients, memory."""

from functools import partial

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import d2llm_kernels as dk
from d2llm_kernels import reference
from tests import adversarial
from tests.contract import assert_parity
from tests.kernels.cases import BACKENDS, CASES, PARITY, apart, needs_even_products, with_gradients


def inputs(queries: int, passages: int, hidden: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0):
        return torch.randn(*shape, generator=generator, dtype=torch.float64) * scale

    projections = (normal(queries, hidden), normal(passages, hidden))
    weights = (normal(hidden, hidden, scale=hidden**-0.5), normal(hidden), normal(1, hidden), normal(1))
    return (*projections, *weights)


def scores(*tensors, backend="folded"):
    return (dk.functional.iem_scores(*tensors, backend=backend),)


def pairs(*tensors, backend="folded"):
    return dk.functional.iem_pairs(*tensors, return_features=True, backend=backend)


@pytest.mark.parametrize("backend,dtype,threads", PARITY, indirect=["threads"])
@pytest.mark.parametrize("queries,passages,hidden", [(1, 1, 64), (3, 63, 50), (5, 257, 33), (300, 2, 16), (2, 700, 8)])
def test_scores_parity(queries, passages, hidden, backend, dtype, threads):
    tensors = inputs(queries, passages, hidden)
    assert_parity(partial(scores, backend=backend), lambda *t: (reference.iem_scores(*t),), tensors, dtype)


@pytest.mark.parametrize("backend,dtype,threads", PARITY, indirect=["threads"])
@pytest.mark.parametrize("rows,hidden", [(1, 64), (63, 50), (600, 16)])
def test_pairs_parity(rows, hidden, backend, dtype, threads):
    assert_parity(partial(pairs, backend=backend), reference.iem_pairs, inputs(rows, rows, hidden), dtype)


@pytest.mark.parametrize("backend,dtype", CASES)
@pytest.mark.parametrize("queries,passages,hidden", [(1, 1, 1), (5, 63, 50), (7, 130, 33), (40, 3, 16)])
def test_whole_numbers_are_exact(queries, passages, hidden, backend, dtype):
    """Every sum is, in any order; gradients too where the relu's argument is exactly 0."""
    tensors = adversarial.pairs(queries, passages, hidden)
    got = scores(*(t.to(dtype) for t in tensors), backend=backend)[0]
    assert torch.equal(got.double(), reference.iem_scores(*tensors))
    assert_parity(partial(scores, backend=backend), lambda *t: (reference.iem_scores(*t),), tensors, dtype)
    rows = min(queries, passages)
    tensors = (tensors[0][:rows], tensors[1][:rows], *tensors[2:])
    got, exact = pairs(*(t.to(dtype) for t in tensors), backend=backend), reference.iem_pairs(*tensors)
    assert all(torch.equal(one.double(), other) for one, other in zip(got, exact, strict=True))
    assert_parity(partial(pairs, backend=backend), reference.iem_pairs, tensors, dtype)


def test_gradcheck():
    tensors = tuple(t.requires_grad_() for t in inputs(3, 4, 6))
    assert torch.autograd.gradcheck(scores, tensors)
    rows = tuple(t.detach().requires_grad_() for t in inputs(5, 5, 6, seed=1))
    assert torch.autograd.gradcheck(pairs, rows)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("queries,passages", [(0, 4), (4, 0), (0, 0)])
def test_no_queries_or_no_passages(queries, passages, backend):
    tensors = [t.float().requires_grad_() for t in inputs(queries, passages, 8)]
    out = scores(*tensors, backend=backend)[0]
    assert out.shape == (queries, passages)
    out.sum().backward()
    assert all((t.grad == 0).all() for t in tensors)


def test_pairs_equal_the_diagonal_of_scores_and_broadcast():
    a, b, *weights = inputs(6, 6, 16)
    z = dk.functional.iem_pairs(a, b, *weights)
    full = dk.functional.iem_scores(a, b, *weights)
    torch.testing.assert_close(z, full.diagonal(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(dk.functional.iem_pairs(a[:, None], b, *weights), full, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend,dtype", CASES)
@pytest.mark.parametrize("hidden", (100, 9, 33))
@pytest.mark.parametrize("passages", (1, 5, 17, 257, 300))
def test_a_score_does_not_depend_on_place_or_neighbours(passages, hidden, backend, dtype):
    needs_even_products(backend, dtype, hidden)
    score = partial(scores, backend=backend)
    a, b, *weights = (t.to(dtype) for t in inputs(3, 1, hidden))
    alone = score(a, b, *weights)[0]
    crowd = torch.cat([b.expand(passages, -1), torch.randn(7, hidden).to(dtype)])
    assert torch.equal(score(a, crowd, *weights)[0][:, :passages], alone.expand(3, passages))
    assert torch.equal(score(a[1:2], b, *weights)[0], alone[1:2])


def test_half_precision_scores_come_in_float32():
    tensors = [t.bfloat16() for t in inputs(3, 4, 8)]
    for backend in ("auto", "folded", "reference"):
        assert dk.functional.iem_scores(*tensors, backend=backend).dtype == torch.float32
        z, features = dk.functional.iem_pairs(tensors[0], *tensors[:1], *tensors[2:], True, backend)
        assert z.dtype == torch.float32 and features.dtype == torch.bfloat16


def test_half_precision_index_against_float32_weights():
    a, b, *weights = (t.float() for t in inputs(3, 40, 16))
    mixed = dk.functional.iem_scores(a, b.bfloat16(), *weights, backend="folded")
    torch.testing.assert_close(mixed, reference.iem_scores(a, b.bfloat16().float(), *weights), rtol=1e-5, atol=1e-5)


def test_non_contiguous_inputs_and_expanded_gradients():
    a, b, *weights = inputs(4, 6, 8)
    doubled = torch.stack([a, a], -1)[..., 0].requires_grad_()
    scores(doubled, b.T.contiguous().T, *weights)[0].sum().backward()
    plain = a.clone().requires_grad_()
    reference.iem_scores(plain, b, *weights).sum().backward()
    torch.testing.assert_close(doubled.grad, plain.grad, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_weights(backend):
    a, b, *weights = (t.float() for t in inputs(3, 5, 32))
    for call, right in ((scores, b), (pairs, b[:3])):
        call = partial(call, backend=backend)
        plain, strided = (with_gradients(call, (a, right, *some)) for some in (weights, apart(weights)))
        assert all(torch.equal(one, two) for one, two in zip(plain, strided, strict=True))
    plain, strided = (dk.functional.iem_topk(a, b, *some, 3, backend=backend) for some in (weights, apart(weights)))
    assert torch.equal(plain[0], strided[0]) and torch.equal(plain[1], strided[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_the_inputs_are_saved_for_backward(backend):
    tensors = [t.float().requires_grad_() for t in inputs(64, 64, 32)]
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.setdefault(t.untyped_storage().data_ptr(), t.untyped_storage().nbytes()) and t, lambda t: t
    ):
        scores(*tensors, backend=backend)
    assert 0 < sum(kept.values()) <= sum(t.untyped_storage().nbytes() for t in tensors)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_allocation_beyond_the_tiles_and_the_scores(backend):
    tensors = [t.float().requires_grad_() for t in inputs(64, 256, 64)]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        scores(*tensors, backend=backend)[0].sum().backward()
    largest = max(event.self_cpu_memory_usage for event in recorded.events())
    tile, matrix = 256 * torch.get_num_threads() * 64 * 4, 64 * 256 * 4
    assert 0 < largest <= max(tile, matrix)
    assert largest < 64 * 256 * 64 * 4 / 4, "of the order of Nq * Np * F"


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
    tensors = list(inputs(2, 3, 8))
    tensors[position] = tensor
    with pytest.raises(dk.ArgumentError, match=f"^{name}: expected"):
        dk.functional.iem_scores(*tensors)


def test_pairs_that_do_not_broadcast_are_named():
    a, b, *weights = inputs(2, 3, 8)
    with pytest.raises(dk.ArgumentError, match=r"^b: expected a shape that broadcasts"):
        dk.functional.iem_pairs(a, b, *weights)
