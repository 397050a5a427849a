"""How sure a difference between two systems is: a paired bootstrap interval and a randomisation test."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from d2llm.errors import InputError

Values = NDArray[np.float64]

SAMPLES = 10_000
LEVEL = 0.95
#: Numbers drawn at a time: 32 MB.
_BLOCK = 1 << 22


class Paired(Protocol):
    """Two systems on the same N queries or pairs."""

    @property
    def size(self) -> int:
        """N."""

    def resampled(self, rows: NDArray[np.int64]) -> Values:
        """First less second on rows (R, N) of them, drawn with replacement: (R,)."""

    def swapped(self, mask: NDArray[np.bool_]) -> Values:
        """First less second where those of the mask (R, N) are exchanged between the two: (R,)."""


@dataclass(frozen=True)
class Means:
    """Two systems that are compared by the mean of a metric, (N,) each."""

    first: Values
    second: Values

    @property
    def size(self) -> int:
        """Queries N."""
        return len(self.first)

    def resampled(self, rows: NDArray[np.int64]) -> Values:
        """See :class:`Paired`."""
        return (self.first - self.second)[rows].mean(axis=1)

    def swapped(self, mask: NDArray[np.bool_]) -> Values:
        """See :class:`Paired`."""
        return np.where(mask, self.second - self.first, self.first - self.second).mean(axis=1)


@dataclass(frozen=True)
class Scored:
    """Two systems that are compared by a metric of all scores at once, such as a correlation.

    Scores of two systems have no common scale, so that a swap exchanges ranks.
    """

    first: Values
    second: Values
    truth: Values
    #: Scores and truth, (N,) each -> value; NaN for truth of one class only.
    metric: Callable[[Values, Values], float]

    @property
    def size(self) -> int:
        """Pairs N."""
        return len(self.first)

    def resampled(self, rows: NDArray[np.int64]) -> Values:
        """See :class:`Paired`; NaN where the metric is not defined on what was drawn."""
        return np.array([self._difference(self.first[row], self.second[row], self.truth[row]) for row in rows])

    def swapped(self, mask: NDArray[np.bool_]) -> Values:
        """See :class:`Paired`."""
        return np.array(
            [
                self._difference(
                    np.where(row, self.second, self.first), np.where(row, self.first, self.second), self.truth
                )
                for row in mask
            ]
        )

    def _difference(self, first: Values, second: Values, truth: Values) -> float:
        return self.metric(first, truth) - self.metric(second, truth)


@dataclass(frozen=True)
class Difference:
    """One system less another in one metric."""

    value: float
    #: Bounds of the bootstrap interval (percentiles).
    low: float
    high: float
    #: Share of random exchanges between the two that give a difference as large, two-sided.
    p: float


def difference(paired: Paired, samples: int = SAMPLES, seed: int = 0, level: float = LEVEL) -> Difference:
    """The difference, its interval and its p-value; the same for the same seed.

    Both resample the N queries or pairs that the two systems have in common, and say nothing of another training run
    of a system: for that, train it with several seeds.

    Raises:
        InputError: for fewer than 100 samples, or a level outside (0, 1).
    """
    if samples < 100:
        raise InputError(f"samples: expected at least 100, got {samples}")
    if not 0 < level < 1:
        raise InputError(f"level: expected a share between 0 and 1, got {level}")
    draw = np.random.default_rng(seed)
    size = paired.size
    value = float(paired.resampled(np.arange(size)[None])[0])
    blocks = [min(_at_once(size), samples - start) for start in range(0, samples, _at_once(size))]
    drawn = np.concatenate([paired.resampled(draw.integers(size, size=(rows, size))) for rows in blocks])
    exchanged = np.concatenate([paired.swapped(draw.random((rows, size)) < 0.5) for rows in blocks])
    tail = (1 - level) / 2
    low, high = np.nanquantile(drawn, [tail, 1 - tail])
    # The difference as it came is one of the exchanges; rounding must not part what is equal.
    as_large = np.count_nonzero(np.abs(exchanged) >= abs(value) - 1e-12)
    return Difference(value, float(low), float(high), (1 + as_large) / (1 + samples))


def _at_once(size: int) -> int:
    return max(1, _BLOCK // size)
