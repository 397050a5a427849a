"""Intervals and p-values against what theory says of them."""

import numpy as np
import pytest
from scipy.stats import ttest_rel
from sklearn.metrics import roc_auc_score

from d2llm.errors import InputError
from d2llm.evaluation import Means, difference
from d2llm.evaluation.significance import Scored


def test_means_agree_with_the_t_test():
    draw = np.random.default_rng(0)
    second = draw.random(400)
    first = second + draw.normal(0.02, 0.2, 400)
    found, theory = difference(Means(first, second)), ttest_rel(first, second)
    low, high = theory.confidence_interval()
    assert found.value == pytest.approx((first - second).mean())
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.002)
    assert found.p == pytest.approx(theory.pvalue, abs=0.01)
    assert found == difference(Means(first, second)) != difference(Means(first, second), seed=1)


def test_equal_systems_do_not_differ():
    values = np.random.default_rng(0).random(50)
    found = difference(Means(values, values), samples=200)
    assert (found.value, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_p_is_never_nought_and_small_samples_say_little():
    assert difference(Means(np.ones(300), np.zeros(300)), samples=500).p == pytest.approx(1 / 501)
    # Of three queries an eighth of the exchanges changes nothing, and an eighth turns all of it round.
    assert difference(Means(np.ones(3), np.zeros(3)), samples=4000).p == pytest.approx(1 / 4, abs=0.03)


def test_metrics_of_all_scores():
    draw = np.random.default_rng(1)
    truth = draw.integers(0, 2, 200).astype(float)
    good, bad = truth + draw.normal(0, 1, 200), draw.normal(0, 1, 200)

    def auc(scores: np.ndarray, labels: np.ndarray) -> float:
        return roc_auc_score(labels, scores)

    found = difference(Scored(good, bad, truth, auc), samples=100)
    assert found.value == pytest.approx(roc_auc_score(truth, good) - roc_auc_score(truth, bad))
    assert 0 < found.low < found.value < found.high < 0.5 and found.p == pytest.approx(1 / 101)


@pytest.mark.parametrize("options", [{"samples": 99}, {"level": 1.0}])
def test_bad_options_are_named(options):
    with pytest.raises(InputError, match=f"^{next(iter(options))}: expected"):
        difference(Means(np.ones(3), np.ones(3)), **options)
