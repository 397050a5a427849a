"""From scores of labelled pairs to a table: metrics, thresholds of validation pairs, differences."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata, zscore
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, roc_auc_score

from d2llm.errors import InputError
from d2llm.evaluation.compare import Comparison, Contrast, Row
from d2llm.evaluation.measure import against, spread
from d2llm.evaluation.pair_systems import ScoredPairs
from d2llm.evaluation.pairs import Thresholds, fit_thresholds, nli_metrics, sts_metrics
from d2llm.evaluation.significance import Scored, Values, difference

Floats = NDArray[np.floating]

#: Resamples: every one computes a metric anew.
SAMPLES = 1000


def _correlation(first: Values, second: Values) -> float:
    return float(np.corrcoef(first, second)[0, 1]) if np.ptp(first) and np.ptp(second) else 0.0


#: What a difference may be measured in.
_METRICS: dict[str, dict[str, Callable[[Values, Values], float]]] = {
    "nli": {
        "ap": lambda scores, truth: average_precision_score(truth, scores),
        "roc_auc": lambda scores, truth: roc_auc_score(truth, scores),
        "accuracy": lambda decisions, truth: accuracy_score(truth, decisions),
        "f1": lambda decisions, truth: f1_score(truth, decisions, zero_division=0.0),
    },
    "sts": {
        "spearman": lambda scores, truth: _correlation(rankdata(scores), rankdata(truth)),
        "pearson": _correlation,
    },
}


def measure_pairs(
    found: Mapping[str, ScoredPairs],
    labels: Sequence[float],
    kind: str,
    validation: tuple[Mapping[str, ScoredPairs], Sequence[float]] | None = None,
    *,
    contrast: str | None = None,
    baselines: Sequence[str] = (),
    samples: int = SAMPLES,
    seed: int = 0,
) -> Comparison:
    """Measure what systems say of N pairs.

    Args:
        found: {name of a system: its scores}.
        labels: N labels.
        kind: "nli" or "sts".
        validation: scores and labels of other pairs, on which the thresholds of every system are fitted; without it
            there is no accuracy and no F1.
        contrast: metric in which every system is compared with the baselines: ap, roc_auc, accuracy or f1; spearman or
            pearson. By default the first of them.
        baselines: some systems; by default the first one.
        samples, seed: of the intervals and tests (:func:`d2llm.evaluation.significance.difference`).

    Raises:
        InputError: for an unknown metric or baseline, and as the metrics do, with the system's name put in front.
    """
    contrast = next(iter(_METRICS[kind])) if contrast is None else contrast
    possible = [name for name in _METRICS[kind] if validation is not None or name not in ("accuracy", "f1")]
    if contrast not in possible:
        raise InputError(f"--contrast: expected one of {', '.join(possible)}, got {contrast!r}")
    compared = against(found, baselines)
    rows, comparable = [], {}
    for name, each in found.items():
        seeds = [
            _metrics(name, scores, labels, kind, None if validation is None else _fitted(name, number, validation))
            for number, scores in enumerate(each.seeds)
        ]
        means = {metric: float(np.mean([one[metric] for one in seeds])) for metric in seeds[0]}
        rows.append(Row(name, {**means, "pairs": float(len(labels)), "pair_ms": each.pair_ms}, spread(seeds)))
        comparable[name] = _comparable(contrast, each.seeds[0], seeds[0])
    truth = np.asarray(labels, np.float64)
    contrasts = [
        Contrast(
            name,
            baseline,
            contrast,
            difference(Scored(comparable[name], comparable[baseline], truth, _defined(kind, contrast)), samples, seed),
        )
        for name, baseline in compared
    ]
    notes = [
        f"{name}: compared by its first of {len(each.seeds)} seeds" for name, each in found.items() if each.seeds[1:]
    ]
    return Comparison(tuple(rows), tuple(contrasts), tuple(notes))


def _fitted(name: str, number: int, validation: tuple[Mapping[str, ScoredPairs], Sequence[float]]) -> Thresholds:
    scored, labels = validation
    return fit_thresholds(scored[name].seeds[number], labels)


def _metrics(
    name: str, scores: Floats, labels: Sequence[float], kind: str, thresholds: Thresholds | None
) -> dict[str, float]:
    try:
        return nli_metrics(scores, labels, thresholds) if kind == "nli" else sts_metrics(scores, labels)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


def _comparable(metric: str, scores: Floats, measured: Mapping[str, float]) -> Values:
    """Scores on a scale that two systems share, on which the metric is what it was."""
    if f"{metric}_threshold" in measured:
        return (scores >= measured[f"{metric}_threshold"]).astype(np.float64)
    if metric == "pearson":
        return zscore(scores.astype(np.float64)) if np.ptp(scores) else np.zeros(len(scores))
    return rankdata(scores)


def _defined(kind: str, metric: str) -> Callable[[Values, Values], float]:
    """The metric; NaN where what was drawn has truth of one value only."""
    measure = _METRICS[kind][metric]
    return lambda scores, truth: measure(scores, truth) if np.ptp(truth) else np.nan
