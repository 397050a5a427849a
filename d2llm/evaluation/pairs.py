"""Metrics of scored text pairs: inference (NLI, two classes) and similarity (STS), by scikit-learn and scipy."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    precision_recall_curve,
    precision_recall_fscore_support,
    roc_auc_score,
    roc_curve,
)

from d2llm.errors import InputError


class Thresholds(NamedTuple):
    """The score from which on a pair counts as 1, for the best accuracy and for the best F1."""

    accuracy: float
    f1: float


def fit_thresholds(scores: ArrayLike, labels: ArrayLike) -> Thresholds:
    """The best thresholds on validation pairs, to measure other pairs with.

    Args:
        scores: (N,) float.
        labels: (N,) of 0 and 1 (or bool).

    Raises:
        InputError: as :func:`nli_metrics`.
    """
    values, truth = _two_classes(scores, labels)
    return Thresholds(_best_accuracy_threshold(values, truth), _best_f1_threshold(values, truth))


def nli_metrics(scores: ArrayLike, labels: ArrayLike, thresholds: Thresholds | None = None) -> dict[str, float]:
    """Two-class metrics of a score that should be higher for label 1.

    Args:
        scores: (N,) float.
        labels: (N,) of 0 and 1 (or bool); 1 is entailment, or relevant.
        thresholds: those of :func:`fit_thresholds` on other pairs than these.

    Returns:
        ``ap`` (average precision) and ``roc_auc``. With thresholds also ``accuracy`` and ``accuracy_threshold``;
        ``f1`` and ``f1_threshold`` with ``precision`` and ``recall`` there. Constant scores give a ``roc_auc`` of 0.5.

    Raises:
        InputError: for shapes that do not match, NaN or infinite scores, labels other than 0 and 1,
            or labels of one class only, where precision and AUC are not defined.
    """
    values, truth = _two_classes(scores, labels)
    result = {"ap": float(average_precision_score(truth, values)), "roc_auc": float(roc_auc_score(truth, values))}
    if thresholds is None:
        return result
    precision, recall, f1, _ = precision_recall_fscore_support(
        truth, values >= thresholds.f1, average="binary", pos_label=1.0, zero_division=0.0
    )
    return result | {
        "accuracy": float(accuracy_score(truth, values >= thresholds.accuracy)),
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
        "accuracy_threshold": thresholds.accuracy,
        "f1_threshold": thresholds.f1,
    }


def sts_metrics(scores: ArrayLike, gold: ArrayLike) -> dict[str, float]:
    """Correlation of scores with graded similarity.

    Args:
        scores: (N,) float.
        gold: (N,) float.

    Returns:
        ``pearson`` and ``spearman``; both 0 for constant scores.

    Raises:
        InputError: for shapes that do not match, fewer than two pairs, NaN or infinite numbers, or
            constant gold, with which nothing can correlate.
    """
    values, truth = _numbers("scores", scores), _numbers("gold", gold)
    _same_length(values, truth, "gold")
    if len(truth) < 2 or np.ptp(truth) == 0:
        raise InputError(f"gold: expected at least two different values, got {len(truth)} pairs without any difference")
    if np.ptp(values) == 0:
        return {"pearson": 0.0, "spearman": 0.0}
    return {"pearson": float(pearsonr(values, truth)[0]), "spearman": float(spearmanr(values, truth)[0])}


def _best_accuracy_threshold(values: NDArray[np.float64], truth: NDArray[np.float64]) -> float:
    """The score from which on "1" is right most often; above every score where the answer is always 0."""
    false_rate, true_rate, thresholds = roc_curve(truth, values, drop_intermediate=False)
    positives = truth.sum()
    right = true_rate * positives + (1 - false_rate) * (len(truth) - positives)
    best = thresholds[np.argmax(right)]
    return float(best) if np.isfinite(best) else float(np.nextafter(values.max(), np.inf))


def _best_f1_threshold(values: NDArray[np.float64], truth: NDArray[np.float64]) -> float:
    precision, recall, thresholds = precision_recall_curve(truth, values)
    # The last point, precision 1 at recall 0, belongs to no threshold.
    precision, recall = precision[:-1], recall[:-1]
    f1 = 2 * precision * recall / np.maximum(precision + recall, np.finfo(np.float64).tiny)
    return float(thresholds[np.argmax(f1)])


def _two_classes(scores: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    values, truth = _numbers("scores", scores), _numbers("labels", labels)
    _same_length(values, truth, "labels")
    classes = set(truth.tolist())
    if classes - {0.0, 1.0}:
        raise InputError(f"labels: expected 0 and 1, got {sorted(classes)[:5]}")
    if len(classes) != 2:
        raise InputError(f"labels: expected both classes, got only {int(truth[0])}")
    return values, truth


def _numbers(name: str, values: ArrayLike) -> NDArray[np.float64]:
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or len(numbers) == 0:
        raise InputError(f"{name}: expected (N,), not empty, got {numbers.shape}")
    if not np.isfinite(numbers).all():
        raise InputError(f"{name}: expected finite numbers, got {numbers[~np.isfinite(numbers)][0]}")
    return numbers


def _same_length(values: NDArray[np.float64], truth: NDArray[np.float64], name: str) -> None:
    if len(values) != len(truth):
        raise InputError(f"{name}: expected {len(values)}, one a score, got {len(truth)}")
