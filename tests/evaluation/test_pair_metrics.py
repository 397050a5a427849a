import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2llm.errors import InputError
from d2llm.evaluation import Thresholds, fit_thresholds, nli_metrics, sts_metrics

scored = st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=30).filter(
    lambda rows: len({label for _, label in rows}) == 2
)


@settings(max_examples=100, deadline=None)
@given(scored)
def test_thresholds_are_the_best_there_are(rows):
    scores, labels = np.array([s for s, _ in rows], dtype=float), np.array([label for _, label in rows])
    metrics = nli_metrics(scores, labels, fit_thresholds(scores, labels))
    accuracies, f1s = [], []
    for threshold in [*np.unique(scores), scores.max() + 1]:
        said = scores >= threshold
        accuracies.append((said == labels).mean())
        f1s.append(2 * (said & labels).sum() / (said.sum() + labels.sum()))
    assert metrics["accuracy"] == pytest.approx(max(accuracies))
    assert metrics["f1"] == pytest.approx(max(f1s))
    said = scores >= metrics["f1_threshold"]
    assert metrics["precision"] == pytest.approx((said & labels).sum() / said.sum())
    assert metrics["recall"] == pytest.approx((said & labels).sum() / labels.sum())
    pairs = scores[labels][:, None] - scores[~labels][None]
    assert metrics["roc_auc"] == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())


def test_average_precision():
    assert nli_metrics([4, 3, 2, 1], [1, 0, 1, 0])["ap"] == pytest.approx((1 + 2 / 3) / 2)


def test_a_given_threshold_is_used():
    scores, labels = [0.9, 0.6, 0.4, 0.1], [1, 0, 1, 0]
    metrics = nli_metrics(scores, labels, Thresholds(0.5, 0.5))
    assert (metrics["accuracy"], metrics["precision"], metrics["recall"], metrics["f1"]) == (0.5, 0.5, 0.5, 0.5)
    # Nothing is fitted on the pairs that are measured.
    assert set(nli_metrics(scores, labels)) == {"ap", "roc_auc"}


def test_constant_scores_have_defined_values():
    scores, labels = [1, 1, 1, 1], [1, 0, 0, 0]
    metrics = nli_metrics(scores, labels, fit_thresholds(scores, labels))
    assert metrics["accuracy"] == 0.75
    assert metrics["roc_auc"] == 0.5
    assert metrics["ap"] == 0.25
    assert all(np.isfinite(value) for value in metrics.values())
    assert sts_metrics([1, 1, 1], [1, 2, 3]) == {"pearson": 0.0, "spearman": 0.0}


def test_correlations():
    gold = np.arange(10.0)
    assert sts_metrics(np.exp(gold), gold)["spearman"] == pytest.approx(1)
    assert sts_metrics(np.exp(gold), gold)["pearson"] == pytest.approx(np.corrcoef(np.exp(gold), gold)[0, 1])
    assert sts_metrics(-gold, gold)["pearson"] == pytest.approx(-1)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("labels", lambda: nli_metrics([1, 2], [1, 1])),
        ("labels", lambda: nli_metrics([1, 2], [1, 2])),
        ("labels", lambda: nli_metrics([1, 2], [1, 0, 1])),
        ("scores", lambda: nli_metrics([], [])),
        ("scores", lambda: nli_metrics([np.nan, 1], [0, 1])),
        ("scores", lambda: sts_metrics([np.inf, 1], [0, 1])),
        ("gold", lambda: sts_metrics([1, 2], [3, 3])),
        ("gold", lambda: sts_metrics([1], [3])),
        ("gold", lambda: sts_metrics([1, 2], [1, 2, 3])),
    ],
)
def test_errors_name_the_argument(name, call):
    with pytest.raises(InputError, match=f"^{name}: expected"):
        call()
