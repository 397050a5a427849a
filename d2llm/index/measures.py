"""What each measure says of passages that were found, whichever of them found it."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from d2llm.index.searching import Found, Scores, Searching
from d2llm.index.snapshot import Snapshot
from d2llm_kernels import IEM


@torch.inference_mode()
def measured(
    snapshot: Snapshot, head: IEM, task: int, vectors: Tensor, texts: Sequence[str], found: Sequence[Found]
) -> list[dict[str, Scores]]:
    """Scores (n,) of what was found for each query, by name of a measure; those alone that can be had.

    Args:
        vectors: queries (Nq, D), or none of them: then there is BM25 alone.
        texts: the same as texts, or none of them: then there is no BM25.
    """
    searching = Searching(snapshot, head, task, snapshot.live)
    return [
        _of_one(searching, snapshot, each.positions, vectors[row] if len(vectors) else None, texts[row : row + 1])
        for row, each in enumerate(found)
    ]


def _of_one(
    searching: Searching, snapshot: Snapshot, positions: np.ndarray, vector: Tensor | None, text: Sequence[str]
) -> dict[str, Scores]:
    order = np.argsort(positions)
    places = torch.from_numpy(positions[order])
    rows = np.searchsorted(searching.places, positions[order])
    scores: dict[str, Scores] = {}
    if text and snapshot.has_terms:
        scores["bm25"] = searching.lexical(text[0])[0].at(rows)
    if vector is not None and len(positions):
        a = searching.projected(vector[None])
        scores["iem"] = searching.exact(a[0], rows)
        if snapshot.manifest.unit:
            unit = snapshot.gather(places, "unit")
            direction = torch.nn.functional.normalize(vector.cpu().float(), dim=0)
            scores["cosine"] = (unit.float() @ direction).numpy()
        if snapshot.surrogate is not None and int(places[-1]) < snapshot.surrogate[0].end:
            scores["surrogate"] = snapshot.surrogate[0].scores(a)[0, places].numpy()
    back = np.argsort(order)
    return {name: each[back] for name, each in scores.items()}
