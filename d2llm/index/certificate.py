"""What a search in two stages promises, from a sample of queries that were searched in full.

A sample query misses a share of its exact best k when each channel chooses c candidates. The mean share over all
queries like it is below 1 - recall, with a confidence of 95 %, where the product of (1 + (1 - recall) - missed) over
the sample reaches 20: were the mean as large as 1 - recall, that product would have a mean of at most 1 and, by Markov,
reach 20 in one sample of twenty at most. It is the bound of Waudby-Smith and Ramdas (JRSS-B 2024) with a fixed bet,
used as in risk-controlling prediction sets (Bates et al., JACM 2021), of which split conformal prediction is a case. As
it grows with c, the smallest c that passes keeps the confidence. 302 queries that miss nothing promise 0.99.
"""

import math
from dataclasses import dataclass

from torch import Tensor

#: How sure a promise is.
CONFIDENCE = 0.95
# Of an audit: what one query's misses weigh, in units of the promised share.
_BET = 0.1


@dataclass(frozen=True)
class Certificate:
    """What Q queries needed.

    ``places`` (Q, K) int64: positions of each query's exact best K, best first. ``needed`` (Q, K) int64: how many
    candidates each channel must choose so that this passage is among them.
    """

    places: Tensor
    needed: Tensor

    def candidates(self, k: int, recall: float, deleted: Tensor) -> int | None:
        """The fewest candidates of each channel that promise a mean share ``recall`` of the exact best k.

        Args:
            deleted: (rows,) bool; deleted passages drop out, those behind them move up.

        Returns:
            None where the sample cannot promise that: k above K, too few queries, too many deleted.
        """
        if k > self.places.shape[1]:
            return None
        live = deleted[self.places].logical_not()
        counted = live & (live.cumsum(1) <= k)
        needed = self.needed[counted]
        choices = needed.unique()
        low, high = 0, len(choices)
        while low < high:
            middle = (low + high) // 2
            # What lacks to k, since too many are deleted, counts as missed.
            missed = 1 - (counted & (self.needed <= choices[middle])).sum(1) / k
            if _evidence(missed, recall) >= 1 / (1 - CONFIDENCE):
                high = middle
            else:
                low = middle + 1
        return int(choices[low]) if low < len(choices) else None


class Audit:
    """Evidence, query by query, that promises do not hold: it may be looked at at any time."""

    def __init__(self) -> None:
        self._asked, self._log = 0.0, 0.0

    def due(self, share: float) -> bool:
        """Whether the next query is one of those, a share of all, that are audited."""
        before = self._asked
        self._asked += share
        return int(self._asked) > int(before)

    def add(self, missed: float, recall: float) -> bool:
        """Take the share that a query missed into account; whether promises are refuted, with 95 % confidence."""
        promised = 1 - recall
        self._log += math.log1p(_BET / promised * (missed - promised))
        return self._log >= -math.log(1 - CONFIDENCE)


def _evidence(missed: Tensor, recall: float) -> float:
    """The product of (1 + (1 - recall) - missed)."""
    return float((2 - recall - missed.double()).log().sum().exp())
