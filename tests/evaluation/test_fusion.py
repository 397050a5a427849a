import numpy as np
import pytest
from scipy.stats import zscore

from d2llm.fusion import Moments, fuse, z_scores


def test_fusion_is_a_weighted_sum_of_z_scores():
    semantic, lexical = np.random.default_rng(0).normal(3, 9, size=(2, 4, 50))
    expected = zscore(semantic, axis=1) + 0.2 * zscore(lexical, axis=1)
    np.testing.assert_allclose(fuse(semantic, lexical), expected, atol=1e-5)


def test_scores_that_are_all_equal_say_nothing():
    semantic = np.array([[1.0, 3.0, 2.0]])
    # The mean of 0.1 in float32 is not 0.1: what is left over must not be divided by its own size.
    np.testing.assert_array_equal(z_scores(np.full((2, 1000), 0.1)), np.zeros((2, 1000)))
    assert fuse(semantic, [[0.1, 0.1, 0.1]])[0] == pytest.approx(zscore(semantic[0]), abs=1e-6)


def test_some_passages_are_fused_as_among_all() -> None:
    draw = np.random.default_rng(1)
    semantic, lexical = draw.standard_normal((2, 3, 40), np.float32)
    some = [3, 9, 31]
    found = fuse(semantic[:, some], lexical[:, some], 0.5, among=(Moments.of(semantic), Moments.of(lexical)))
    np.testing.assert_array_equal(found, fuse(semantic, lexical, 0.5)[:, some])


def test_zeros_need_not_be_there() -> None:
    scores = np.random.default_rng(2).random(30, np.float32)
    for found in (scores, scores[:0], scores[:1]):
        whole = Moments.of(np.concatenate([np.zeros(70, np.float32), found]))
        np.testing.assert_array_equal(Moments.of(found, 70), whole)
