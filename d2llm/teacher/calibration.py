"""Calibration of a teacher on labelled pairs: the temperature and threshold at which its probabilities are shares.

A pair's log-odds t are its logit of yes less that of no. The calibrated probability that it is relevant is
σ((t − θ) / T): Platt's scaling (1999), written with the threshold θ at which it is even and the temperature T.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from d2llm.data.example import Example, text_id
from d2llm.errors import InputError
from d2llm.teacher.model import NO, YES
from d2llm.teacher.scores import ScoreTable

#: Rows of a reliability table, each a tenth of the probabilities.
BINS = 10
#: Parts of the labelled queries; each is judged by what was fitted to the others.
_FOLDS = 5
#: Pairs of either label below which two numbers are not to be fitted.
_LEAST = 5

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Labelled:
    """Log-odds (N,) float64 of labelled pairs, their labels (N,) bool, and the query of each."""

    odds: Floats
    relevant: Bools
    queries: Sequence[str]

    @classmethod
    def of(cls, examples: Iterable[Example], table: ScoreTable) -> "Labelled":
        """The pairs of examples that a table of scores holds: positives are relevant, negatives are not.

        A pair counts once, as relevant where one example says so.

        Raises:
            InputError: where the table holds none of them.
        """
        labels: dict[tuple[str, str], bool] = {}
        for example in examples:
            query = text_id(example.query)
            for number, passage in enumerate(example.passages):
                pair = query, text_id(passage)
                labels[pair] = labels.get(pair, False) or number == 0
        judged = {pair: found for pair in labels if (found := table.logits(*pair)) is not None}
        if not judged:
            raise InputError(f"examples: expected pairs that the scores hold, got none among {len(labels)}")
        logits = np.array(list(judged.values()), np.float64)
        return cls(logits[:, YES] - logits[:, NO], np.array([labels[pair] for pair in judged]), [q for q, _ in judged])

    def part(self, rows: Bools) -> "Labelled":
        """Those of the pairs that ``rows`` (N,) names."""
        chosen = np.flatnonzero(rows)
        return Labelled(self.odds[chosen], self.relevant[chosen], [self.queries[row] for row in chosen.tolist()])


@dataclass(frozen=True)
class Calibration:
    """σ((t − threshold) / temperature) of log-odds t.

    Raises:
        InputError: for a temperature that is not positive, or numbers that are not finite.
    """

    temperature: float
    threshold: float

    def __post_init__(self) -> None:
        if not 0 < self.temperature < np.inf or not np.isfinite(self.threshold):
            raise InputError(
                f"calibration: expected a positive temperature and a finite threshold, got {self.temperature} and "
                f"{self.threshold}"
            )

    def probability(self, odds: Floats) -> Floats:
        """Of log-odds (...,), float64 (...,)."""
        found: Floats = expit((odds - self.threshold) / self.temperature)
        return found

    @classmethod
    def fit(cls, labelled: Labelled) -> "Calibration":
        """Most likely for labels that are (n₊ + 1) / (n₊ + 2) and 1 / (n₋ + 2), as Platt smooths them.

        Smoothed labels keep both numbers finite where the log-odds part the labels without a fault.

        Raises:
            InputError: for a teacher that puts the others above the relevant ones.
        """
        (slope,), bias = slopes(labelled.odds[:, None], labelled.relevant)
        if slope <= 0:
            raise InputError(
                "labelled pairs: expected higher log-odds for relevant pairs, got lower ones: the teacher judges "
                "against the labels"
            )
        return cls(float(1 / slope), float(-bias / slope))


def slopes(odds: Floats, relevant: Bools) -> tuple[Floats, float]:
    """Weights (J,) and bias by logistic regression of labels (N,), smoothed as Platt does, on log-odds (N, J)."""
    positive, negative = int(relevant.sum()), int((~relevant).sum())
    targets = np.where(relevant, (positive + 1) / (positive + 2), 1 / (negative + 2))
    spread = odds.std(0)
    centre, spread = odds.mean(0), np.where(spread > 0, spread, 1.0)
    x = np.column_stack([(odds - centre) / spread, np.ones(len(odds))])

    def loss(weights: Floats) -> tuple[float, Floats]:
        z = x @ weights
        return float((np.logaddexp(0, z) - targets * z).mean()), x.T @ (expit(z) - targets) / len(z)

    *found, bias = minimize(loss, np.r_[np.ones(odds.shape[1]), 0.0], jac=True, method="BFGS").x
    weights = np.array(found) / spread
    return weights, float(bias - weights @ centre)


@dataclass(frozen=True)
class Reliability:
    """What comes of probabilities: for each tenth, how many there are, their mean and the share that is relevant."""

    counts: NDArray[np.int64]
    means: Floats
    shares: Floats

    @classmethod
    def of(cls, probabilities: Floats, relevant: Bools) -> "Reliability":
        """Of N probabilities and labels; empty rows have NaN."""
        rows = np.minimum((probabilities * BINS).astype(int), BINS - 1)
        counts = np.bincount(rows, minlength=BINS)
        with np.errstate(invalid="ignore"):
            means, shares = (np.bincount(rows, values, BINS) / counts for values in (probabilities, relevant))
        return cls(counts, means, shares)

    @property
    def error(self) -> float:
        """Expected calibration error (Guo et al. 2017): the mean over pairs of |mean − share| of their row."""
        return float(np.nansum(self.counts * np.abs(self.means - self.shares)) / self.counts.sum())

    def __str__(self) -> str:
        rows = [
            f"{row / BINS:.1f} to {(row + 1) / BINS:.1f}  {count:>7,}  {mean:>6.3f}  {share:>6.3f}"
            for row, (count, mean, share) in enumerate(zip(self.counts, self.means, self.shares, strict=True))
            if count
        ]
        return "\n".join(("probability    pairs    mean  relevant", *rows))


@dataclass(frozen=True)
class Calibrated:
    """A calibration and what it is worth."""

    calibration: Calibration
    #: Of every pair as the teacher gives it, and by numbers fitted to the other folds' queries.
    before: Reliability
    after: Reliability
    pairs: int
    relevant: int

    @classmethod
    def of(cls, labelled: Labelled) -> "Calibrated":
        """Fit to all pairs, and measure by five folds over the queries.

        Raises:
            InputError: for fewer than 5 pairs of either label, or as :meth:`Calibration.fit` does, for what a fold
                leaves too.
        """
        relevant = int(labelled.relevant.sum())
        others = len(labelled.relevant) - relevant
        if min(relevant, others) < _LEAST:
            raise InputError(
                f"labelled pairs: expected at least {_LEAST} relevant and {_LEAST} others that the teacher judged, got "
                f"{relevant} and {others}"
            )
        whole = Calibration.fit(labelled)
        numbers = {query: number for number, query in enumerate(dict.fromkeys(labelled.queries))}
        folds = np.array([numbers[query] % _FOLDS for query in labelled.queries])
        found = np.empty(len(folds))
        for fold in np.unique(folds):
            rows = folds == fold
            found[rows] = Calibration.fit(labelled.part(~rows)).probability(labelled.odds[rows])
        before = Reliability.of(expit(labelled.odds), labelled.relevant)
        after = Reliability.of(found, labelled.relevant)
        return cls(whole, before, after, len(folds), relevant)

    def header(self) -> dict[str, Any]:
        """What a file of scores keeps of it."""
        return {
            **asdict(self.calibration),
            "pairs": self.pairs,
            "relevant": self.relevant,
            "error_before": self.before.error,
            "error": self.after.error,
        }

    def __str__(self) -> str:
        return (
            f"{self.pairs} labelled pairs, {self.relevant} of them relevant\n"
            f"temperature {self.calibration.temperature:.3f}, threshold {self.calibration.threshold:+.3f}\n"
            f"expected calibration error {self.before.error:.3f} before, {self.after.error:.3f} after (five folds over "
            f"the queries)\n{self.after}"
        )
