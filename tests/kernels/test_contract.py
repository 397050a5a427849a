"""The contract itself: what it lets pass, and what not."""

import pytest
import torch

from tests.contract import MAXIMUM_FACTOR, RMS_FACTOR, assert_within


def within(size: int, ratio: float) -> bool:
    """Whether an error ``ratio`` times the reference's, far above rounding, passes in all of ``size`` entries."""
    exact = torch.ones(size, dtype=torch.float64)
    try:
        assert_within(exact + 0.01 * ratio, exact + 0.01, exact, torch.float32)
    except AssertionError:
        return False
    return True


@pytest.mark.parametrize("size,factor", [(1, MAXIMUM_FACTOR), (2, RMS_FACTOR), (100, RMS_FACTOR)])
def test_one_number_is_held_as_a_maximum_and_more_on_average_too(size, factor):
    assert within(size, 0.99 * factor) and not within(size, 1.01 * factor)
