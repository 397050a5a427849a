"""Fusing lexical with semantic scores: a weighted sum of z-scores over the passages of a query."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: What BM25 weighs beside the interaction module.
BM25_WEIGHT = 0.2


class Moments(NamedTuple):
    """Mean and deviation of scores over their last axis, (..., 1) float32; the deviation of equal scores is 0."""

    mean: NDArray[np.float32]
    deviation: NDArray[np.float32]

    @classmethod
    def of(cls, scores: ArrayLike, zeros: int = 0) -> "Moments":
        """Those of scores (..., Np), Np at least 1, and of so many zeros more, which need not be there as numbers."""
        every = np.asarray(scores, np.float32)
        count = every.shape[-1] + zeros
        # Sums in float64: a row of a large corpus has millions of scores.
        mean = (every.sum(axis=-1, keepdims=True, dtype=np.float64) / count).astype(np.float32)
        squares = np.square(every - mean).sum(axis=-1, keepdims=True, dtype=np.float64)
        squares += zeros * np.square(mean).astype(np.float64)
        first = every[..., :1] if every.shape[-1] and not zeros else np.zeros_like(mean)
        equal = (every == first).all(axis=-1, keepdims=True)
        deviation = np.where(equal, np.float32(0), np.sqrt(squares / count).astype(np.float32))
        return cls(mean, deviation)


def z_scores(scores: ArrayLike, among: Moments | None = None) -> NDArray[np.float32]:
    """Scores less their mean, in standard deviations, over the last axis: (..., Np) -> (..., Np) float32.

    Scores that are all equal say nothing and become 0. ``among`` are the moments to take, where ``scores`` are but some
    of those that they are of.
    """
    values = np.asarray(scores, np.float32)
    mean, deviation = Moments.of(values) if among is None else among
    equal = deviation == 0
    result: NDArray[np.float32] = np.where(
        equal, np.float32(0), (values - mean) / np.where(equal, np.float32(1), deviation)
    )
    return result


def fuse(
    semantic: ArrayLike,
    lexical: ArrayLike,
    weight: float = BM25_WEIGHT,
    among: tuple[Moments, Moments] | None = None,
) -> NDArray[np.float32]:
    """z(semantic) + weight · z(lexical), over the last axis.

    Args:
        semantic: (..., Np) finite scores, such as IEM's logits of all passages, or of the candidates of a query.
        lexical: (..., Np) finite scores of the same passages, such as BM25's.
        weight: what the second list weighs beside the first.
        among: moments of the semantic and the lexical scores of the passages, or of a sample of them, where the others
            are those of some passages only.

    Returns:
        (..., Np) float32, higher is better.
    """
    semantic_among, lexical_among = among or (None, None)
    return z_scores(semantic, semantic_among) + np.float32(weight) * z_scores(lexical, lexical_among)
