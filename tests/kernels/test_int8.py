"""Scores and top-k in int8: the error contract, exact integers, recall on real vectors, ties, threads, errors.

The contract has two parts. What top-k returns is off by the rounding of the passages alone. A value rounded to whole
steps is off by step²/12 in the mean square; the slope of z carries that to z, and so gives the yardstick. Scores in 8
bits, which only choose candidates, also suffer from the rounded weight: where a row's largest value is far above the
rest, as near a warm start, the error of the rest is no noise. They are held to a share of the scores' own spread.
"""

import math

import pytest
import torch
from torch import Tensor

import d2llm_kernels as dk
from d2llm_kernels import int8, reference
from d2llm_kernels.rough import search
from tests.contract import guarded
from tests.kernels.cases import BACKENDS, assert_same_on_any_threads, branch_of, needs_even_products, pair_inputs

# Rounded passages are many independent draws: their mean square is near the yardstick, and the largest of a
# million normal draws is 4.9 deviations; sums of roundings are near normal.
PASSAGES_RMS, PASSAGES_MAXIMUM = 1.2, 6.0
# In standard deviations of a query's scores: 1.5 times what was measured for the shipped student, whose exact best
# hundred were then among the best 200.
SCORES_RMS, SCORES_MAXIMUM = 0.15, 0.75


def inputs(queries: int, passages: int, hidden: int) -> list[Tensor]:
    return [tensor.float() for tensor in pair_inputs(queries, passages, hidden)]


def centred(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The queries, and the passages in int8, as an index keeps them."""
    return (a + b.mean(0), *int8.quantize(b - b.mean(0)))


def assert_near(got: Tensor, exact: Tensor, variance: Tensor, rms: float, maximum: float) -> None:
    error = got.double() - exact
    assert error.square().mean() <= rms**2 * variance.mean()
    assert error.abs().max() <= maximum * variance.max().sqrt()


def exact_scores(a: Tensor, b: Tensor, scale: Tensor, branch: list[Tensor]) -> tuple[Tensor, Tensor]:
    """z (Nq, Np) in float64, and its mean square error if the passages are rounded with these scales."""
    weight, bias, out, out_bias = (tensor.double() for tensor in branch)
    hidden = (a.double()[:, None] + b.double()).clamp_min(0)
    pre = hidden @ weight.T + bias
    slope = (out[0] * (pre > 0)) @ weight * (hidden > 0)
    return pre.clamp_min(0) @ out[0] + out_bias, slope.square().sum(-1) * scale.double().square() / 12


def assert_contract(a: Tensor, b: Tensor, values: Tensor, scale: Tensor, branch: list[Tensor], backend: str) -> None:
    exact, passages = exact_scores(a, b, scale, branch)
    scores = int8.iem_scores(a, values, scale, *branch, backend=backend)
    if backend == "cpu":
        # What all passages of a query are off by moves none of them past another.
        scores = scores - (scores - exact).mean(1, keepdim=True)
        assert_near(scores, exact, exact.var(1), SCORES_RMS, SCORES_MAXIMUM)
    else:
        assert_near(scores, exact, passages, PASSAGES_RMS, PASSAGES_MAXIMUM)
    best, indices = int8.iem_topk(a, values, scale, *branch, 100, backend=backend)
    assert_near(best, exact.gather(1, indices), passages.gather(1, indices), PASSAGES_RMS, PASSAGES_MAXIMUM)


@pytest.mark.parametrize("task", (0, 1))
@pytest.mark.parametrize("backend", BACKENDS)
def test_error_contract_on_trained_vectors(trained, backend, task):
    iem, a, b = trained
    a, b = a[:8], b[:2000]
    queries, values, scale = centred(a, b)
    assert_contract(queries, b - b.mean(0), values, scale, branch_of(iem, task), backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", ((3, 131, 70), (5, 300, 512), (2, 128, 96)))
def test_error_contract_on_random_numbers(backend, size):
    a, b, *branch = inputs(*size)
    values, scale = int8.quantize(b)
    assert ((values * scale[:, None] - b).abs() <= scale[:, None] * 0.5001).all()
    assert_contract(a, b, values, scale, branch, backend)


@pytest.mark.parametrize("task", (0, 1))
@pytest.mark.parametrize("backend", BACKENDS)
def test_recall_of_the_exact_best_hundred(trained, best_hundred, backend, task):
    iem, a, b = trained
    _, exact = best_hundred[task]
    queries, values, scale = centred(a, b)
    _, found = int8.iem_topk(queries, values, scale, *branch_of(iem, task), 100, backend=backend)
    shared = [len(set(one) & set(other)) for one, other in zip(exact.tolist(), found.tolist(), strict=True)]
    assert sum(shared) / (100 * len(shared)) >= 0.99


@pytest.mark.parametrize("task", (0, 1))
@pytest.mark.cpu
def test_candidates_hold_the_best_of_the_rounded_passages(trained, task):
    iem, a, b = trained
    branch = branch_of(iem, task)
    queries, values, scale = centred(a, b)
    expected = dk.functional.iem_topk(queries, values * scale[:, None], *branch, 100, backend="cpu")
    for k in (1, 10, 100):
        got = int8.iem_topk(queries, values, scale, *branch, k, backend="cpu")
        assert all(torch.equal(one, all_of[:, :k]) for one, all_of in zip(got, expected, strict=True))


def literal(a: Tensor, b: Tensor, scale: Tensor, branch: list[Tensor]) -> Tensor:
    """The C++ kernels' scores in 8 bits, step by step; every operation on floats is rounded to float32."""
    weight, bias, out, out_bias = branch
    top = a.abs().amax(1, keepdim=True)
    unit = (top + 128 * scale) / 32767
    row_a = (top / 32767 / unit * 32768).round().clamp_max(32767).int()
    row_b = (scale / unit * 128).round().clamp_max(32767).int()
    whole = (a / (top / 32767)).round().int()
    scaled = lambda value, factor: (value * factor + 0x4000) >> 15  # noqa: E731
    hidden = scaled(whole[:, None], row_a[..., None]) + scaled(b.int() * 256, row_b[..., None])
    hidden = hidden.clamp_min(0)
    factor = 255 * 32768 // hidden.amax(-1).clamp_min(256)
    hidden = scaled(hidden, factor[..., None])
    steps = unit * (32768 / factor)
    rows = weight.abs().amax(1) / 127
    sums = hidden.double() @ (weight / rows[:, None]).round().double().T
    z = out_bias.expand(len(a), len(b))
    for n, row in enumerate(rows):
        z = z + out[0, n] * (sums[..., n].float() * row * steps + bias[n]).clamp_min(0)
    return z


@pytest.mark.cpu
@pytest.mark.parametrize("size", ((3, 131, 70), (1, 1, 1), (2, 50, 512), (4, 97, 600)))
def test_scores_equal_the_formula_to_the_last_bit(size):
    a, b, *branch = inputs(*size)
    values, scale = int8.quantize(b)
    # Passages near the query's negative leave little of the hidden layer: the resolution ends there.
    a[0] *= 0.001
    got = int8.iem_scores(guarded(a), values, guarded(scale), *map(guarded, branch), backend="cpu")
    assert torch.equal(got, literal(a, values, scale, branch))


@pytest.mark.cpu
def test_bit_equal_for_any_number_of_threads():
    a, b, *branch = inputs(3, 1031, 70)
    rows = (a, *int8.quantize(b), *branch)
    assert_same_on_any_threads(lambda: (int8.iem_scores(*rows, backend="cpu"), *int8.iem_topk(*rows, 9, backend="cpu")))


@pytest.mark.parametrize("backend", BACKENDS)
def test_topk_equals_the_sorted_scores_of_the_rounded_passages(backend):
    needs_even_products(backend, torch.float32, 70)
    a, b, *branch = inputs(3, 131, 70)
    values, scale = int8.quantize(b[torch.randint(40, (131,))])
    for k in (1, 9, 131):
        best, indices = int8.iem_topk(a, values, scale, *branch, k, backend=backend)
        scores = dk.functional.iem_scores(a, values * scale[:, None], *branch, backend=backend)
        expected = reference.topk(scores, k)
        torch.testing.assert_close(best, expected[0])
        assert torch.equal(indices, expected[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_take_the_lower_index_across_blocks(backend, monkeypatch):
    needs_even_products(backend, torch.float32, 16)
    monkeypatch.setattr(search, "_BLOCK", 1000)
    a, b, *branch = inputs(3, 1, 16)
    values, scale = int8.quantize(b.expand(5000, 16))
    _, indices = int8.iem_topk(a, values, scale, *branch, 7, backend=backend)
    assert torch.equal(indices, torch.arange(7).expand(3, 7))


@pytest.mark.parametrize("backend", BACKENDS)
def test_zeros_and_what_is_not_a_number(backend):
    a, b, *branch = inputs(3, 20, 16)
    b[3] = 0
    values, scale = int8.quantize(b)
    assert scale[3] == 0 and not values[3].any()
    zeros = int8.iem_scores(0 * a, values, 0 * scale, *branch, backend=backend)
    expected = dk.functional.iem_scores(0 * a, 0 * b, *branch, backend=backend)
    torch.testing.assert_close(zeros, expected)
    a[1, 2] = math.nan
    scores = int8.iem_scores(a, values, scale, *branch, backend=backend)
    assert scores[1].isnan().all() and scores[[0, 2]].isfinite().all()
    best, indices = int8.iem_topk(a, values, scale, *branch, 5, backend=backend)
    assert (best[1] == -math.inf).all() and torch.equal(indices[1], torch.arange(5))


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_queries_no_passages_and_strided_rows(backend):
    a, b, *branch = inputs(3, 20, 16)
    values, scale = int8.quantize(b)
    assert int8.iem_scores(a[:0], values, scale, *branch, backend=backend).shape == (0, 20)
    assert int8.iem_scores(a, values[:0], scale[:0], *branch, backend=backend).shape == (3, 0)
    assert int8.iem_topk(a[:0], values, scale, *branch, 4, backend=backend)[1].shape == (0, 4)
    whole = int8.iem_scores(a, values, scale, *branch, backend=backend)
    strided = int8.iem_scores(a[::2], values[::3], scale[::3], *branch, backend=backend)
    torch.testing.assert_close(strided, whole[::2, ::3])
    columns = values.T.contiguous().T
    torch.testing.assert_close(int8.iem_scores(a, columns, scale, *branch, backend=backend), whole)


def test_module_topk_takes_int8():
    iem = dk.IEM(16, 8, init="xavier")
    q, p, task = torch.randn(5, 16), torch.randn(30, 16), torch.tensor([1, 0, 1, 1, 0])
    with torch.no_grad():
        a, (values, scale) = iem.project_queries(q), int8.quantize(iem.project_passages(p))
        got = iem.topk(a, values, 4, task, scale)
        expected = iem.topk(a, values * scale[:, None], 4, task)
    torch.testing.assert_close(got[0], expected[0])
    assert torch.equal(got[1], expected[1])


def test_what_does_not_fit_is_refused():
    a, b, *branch = inputs(3, 20, 16)
    values, scale = int8.quantize(b)
    for message, bad in (
        (r"^b: expected int8, got torch.float32", (a, b, scale)),
        (r"^scale: expected float32, got torch.float64", (a, values, scale.double())),
        (r"^scale: expected shape \(20,\), got \(19,\)", (a, values, scale[1:])),
        (r"^a: expected shape \(N, 16\), got \(3, 15\)", (a[:, 1:], values, scale)),
        (r"^b: expected shape \(N, 16\), got \(20, 15\)", (a, values[:, 1:], scale)),
    ):
        with pytest.raises(dk.ArgumentError, match=message):
            int8.iem_scores(*bad, *branch)
    for k in (0, 21):
        with pytest.raises(dk.ArgumentError, match=r"^k: expected between 1 and the number of passages, 20, got"):
            int8.iem_topk(a, values, scale, *branch, k)
    b[4, 2] = math.inf
    with pytest.raises(dk.ArgumentError, match=r"^b: expected values that are finite in float32, got NaN or infinity"):
        int8.quantize(b)
    with pytest.raises(dk.ArgumentError, match=r"^b: expected a floating point tensor of shape \(Np, F\), got \(16,\)"):
        int8.quantize(b[0])
