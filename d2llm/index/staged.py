"""Search in two stages: cheap channels choose candidates, which alone are scored in full (TOSS, WSDM 2023)."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from d2llm.index.searching import Found, Searching


@torch.inference_mode()
def search_candidates(
    searching: Searching,
    vectors: Tensor,
    texts: Sequence[str],
    k: int,
    *,
    chosen: Mapping[str, Sequence[NDArray[np.int64]]],
    bm25: int,
    weight: float | None,
) -> list[Found]:
    """The k best of each query among its candidates.

    Args:
        searching: the passages.
        vectors: queries (Nq, D).
        texts: the same Nq as texts; none where there are neither candidates by BM25 nor a weight.
        k: how many; fewer come where there are fewer candidates.
        chosen: by name of a channel, each query's candidates by it, best first: rows of the passages searched.
        bm25: how many are chosen by BM25; 0 for none.
        weight: what BM25 weighs beside the interaction module; None to rank by that alone.

    Returns:
        what was found, with ranks by the channels.
    """
    found = []
    for number, a in enumerate(searching.projected(vectors)):
        channels = {name: rows[number] for name, rows in chosen.items()}
        words = searching.lexical(texts[number]) if bm25 or weight is not None else None
        if bm25 and words is not None:
            channels["bm25"] = words[0].best(bm25)
        rows = np.unique(np.concatenate(list(channels.values())))
        rough = searching.rough_at(a, rows)
        if weight is None or words is None:
            scores, best = searching.best(a, rows, rough, k)
        else:
            matches, moments = words
            among = searching.moments(a), moments
            scores, best = searching.best(a, rows, rough, k, matches.at(rows), weight, among)
        ranks = {name: _ranks(order, best) for name, order in channels.items()}
        found.append(Found(scores, searching.places[best], ranks))
    return found


def _ranks(order: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Ranks from 1 of rows in an order, 0 of those that are not in it."""
    # The first column stands for those that are not in it.
    equal = np.column_stack([np.ones(len(rows), bool), rows[:, None] == order])
    return (equal.shape[1] - 1 - equal[:, ::-1].argmax(1)).astype(np.int64)
