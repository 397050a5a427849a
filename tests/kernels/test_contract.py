"""The contract itself: what it lets pass, and what not."""

import math

import pytest
import torch

from d2llm_kernels.measure.contract import MAXIMUM_FACTOR, RMS_FACTOR, SMALLEST_ROW, within, worst
from tests.contract import assert_within


def passes(size: int, ratio: float) -> bool:
    """Whether an error ``ratio`` times the reference's, far above rounding, passes in all of ``size`` entries."""
    exact = torch.ones(size, dtype=torch.float64)
    try:
        assert_within(exact + 0.01 * ratio, exact + 0.01, exact, torch.float32)
    except AssertionError:
        return False
    return True


@pytest.mark.parametrize("size,factor", [(1, MAXIMUM_FACTOR), (2, RMS_FACTOR), (100, RMS_FACTOR)])
def test_one_number_is_held_as_a_maximum_and_more_on_average_too(size, factor):
    assert passes(size, 0.99 * factor) and not passes(size, 1.01 * factor)


def test_row_by_row_a_small_row_does_not_hide_behind_a_large_one():
    exact = torch.tensor([1000.0, 0.693], dtype=torch.float64)
    same = exact * (1 + 1e-7)
    wrong = torch.tensor([1000.0, 1.386]).double()
    whole = torch.bfloat16  # its rounding of 1000 is 8
    assert_within(wrong, same, exact, whole)
    with pytest.raises(AssertionError, match="maximum error 1.000e"):
        assert_within(wrong.float(), same, exact, whole, rows=SMALLEST_ROW)
    matrix = exact[:, None] * torch.tensor([1.0, -0.01], dtype=torch.float64)
    assert_within((matrix * (1 + 1e-7)).float(), matrix, matrix, torch.float32, rows=SMALLEST_ROW)
    matrix_wrong = matrix.clone()
    matrix_wrong[1, 1] += 0.001
    with pytest.raises(AssertionError, match="maximum error 1.443e-03"):
        assert_within(matrix_wrong.float(), matrix, matrix, torch.float32, rows=SMALLEST_ROW)


def test_row_by_row_what_underflows_counts_as_nothing():
    exact = torch.tensor([1.0, 2.0**-140], dtype=torch.float64)
    assert_within(torch.tensor([1.0, 0.0]), exact, exact, torch.float32, rows=SMALLEST_ROW)
    with pytest.raises(AssertionError, match="maximum error"):
        assert_within(torch.tensor([1.0, 2.0**-99]), exact, exact, torch.float32, rows=SMALLEST_ROW)


def test_long_sums_are_granted_their_roundings():
    exact = torch.ones(100, dtype=torch.float64)
    got = exact + 4 * torch.finfo(torch.float32).eps
    assert not within(got, exact, exact, torch.float32).passed
    assert within(got, exact, exact, torch.float32, terms=512).passed
    assert not within(exact + 1e-6, exact, exact, torch.float32, terms=512).passed


@pytest.mark.parametrize(
    "wrong,what",
    [
        (torch.tensor([math.nan, -math.inf]), "not finite where the yardstick is"),
        (torch.tensor([1.0, 2.0]), "the infinite entries differ"),
        (torch.ones(3), "shape (3,), expected (2,)"),
    ],
)
def test_what_cannot_be_compared_is_wrong_and_says_why(wrong, what):
    exact = torch.tensor([1.0, -math.inf], dtype=torch.float64)
    right = within(exact.float(), exact, exact, torch.float32)
    verdict = within(wrong, exact, exact, torch.float32)
    assert right.passed and not verdict.passed and str(verdict) == what
    assert worst([right, verdict]) is verdict and worst([verdict, right]) is verdict


def test_in_float64_each_entry_counts():
    exact = torch.tensor([1e6, 1.0], dtype=torch.float64)
    assert within(exact * (1 + 1e-11), exact, exact, torch.float64).passed
    wrong = exact + torch.tensor([0.0, 1e-9], dtype=torch.float64)
    assert not within(wrong, exact, exact, torch.float64).passed
