"""Fusing lexical with semantic scores: a weighted sum of z-scores over the passages of a query."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: What BM25 weighs beside the interaction module.
BM25_WEIGHT = 0.2


def z_scores(scores: ArrayLike, among: ArrayLike | None = None) -> NDArray[np.float32]:
    """Scores less their mean, in standard deviations, over the last axis: (..., Np) -> (..., Np) float32.

    Scores that are all equal say nothing and become 0. ``among`` (..., M) are the scores that mean and deviation are
    taken of, where ``scores`` are but some of them.
    """
    values = np.asarray(scores, np.float32)
    every = values if among is None else np.asarray(among, np.float32)
    # Sums in float64: a row of a large corpus has millions of scores.
    mean = every.mean(axis=-1, keepdims=True, dtype=np.float64).astype(np.float32)
    spread = np.sqrt(np.square(every - mean).mean(axis=-1, keepdims=True, dtype=np.float64)).astype(np.float32)
    equal = every.max(axis=-1, keepdims=True) == every.min(axis=-1, keepdims=True)
    result: NDArray[np.float32] = np.where(
        equal, np.float32(0), (values - mean) / np.where(equal, np.float32(1), spread)
    )
    return result


def fuse(
    semantic: ArrayLike,
    lexical: ArrayLike,
    weight: float = BM25_WEIGHT,
    among: tuple[ArrayLike, ArrayLike] | None = None,
) -> NDArray[np.float32]:
    """z(semantic) + weight · z(lexical), over the last axis.

    Args:
        semantic: (..., Np) finite scores, such as IEM's logits of all passages, or of the candidates of a query.
        lexical: (..., Np) finite scores of the same passages, such as BM25's.
        weight: what the second list weighs beside the first.
        among: semantic and lexical scores of the passages, or a sample of them, that means and deviations are taken of,
            where the others are those of some passages only.

    Returns:
        (..., Np) float32, higher is better.
    """
    semantic_among, lexical_among = among or (None, None)
    return z_scores(semantic, semantic_among) + np.float32(weight) * z_scores(lexical, lexical_among)
