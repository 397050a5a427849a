"""Fusing lexical with semantic scores: a weighted sum of z-scores over the passages of a query."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: What BM25 weighs beside the interaction module.
BM25_WEIGHT = 0.2


def z_scores(scores: ArrayLike) -> NDArray[np.float32]:
    """Scores less their mean, in standard deviations, over the last axis: (..., Np) -> (..., Np) float32.

    Scores that are all equal say nothing and become 0.
    """
    values = np.asarray(scores, np.float32)
    # Sums in float64: a row of a large corpus has millions of scores.
    centred = values - values.mean(axis=-1, keepdims=True, dtype=np.float64).astype(np.float32)
    spread = np.sqrt(np.square(centred).mean(axis=-1, keepdims=True, dtype=np.float64)).astype(np.float32)
    equal = values.max(axis=-1, keepdims=True) == values.min(axis=-1, keepdims=True)
    result: NDArray[np.float32] = np.where(equal, np.float32(0), centred / np.where(equal, np.float32(1), spread))
    return result


def fuse(semantic: ArrayLike, lexical: ArrayLike, weight: float = BM25_WEIGHT) -> NDArray[np.float32]:
    """z(semantic) + weight · z(lexical), over the last axis.

    Args:
        semantic: (..., Np) finite scores, such as IEM's logits of all passages, or of the candidates of a query.
        lexical: (..., Np) finite scores of the same passages, such as BM25's.
        weight: what the second list weighs beside the first.

    Returns:
        (..., Np) float32, higher is better.
    """
    return z_scores(semantic) + np.float32(weight) * z_scores(lexical)
