"""The passages nearest by cosine, over chunk after chunk."""

from collections.abc import Iterable

import torch
from torch import Tensor

from d2llm.bm25 import top_indices
from d2llm_kernels.rough.candidates import Best
from d2llm_kernels.rough.rows import Rows, widened

# Passages at a time, widened for the product: 37 MB in float32 at D = 576.
_BLOCK = 16384


def nearest(queries: Tensor, chunks: Iterable[Rows], k: int) -> Best:
    """The k best passages of each query by cosine.

    Args:
        queries: vectors (Nq, D).
        chunks: vectors of unit length (n, D).

    Returns:
        Cosines and numbers of passages, on the CPU; the numbers count on from chunk to chunk.
    """
    directions = torch.nn.functional.normalize(queries, dim=1)
    best, first = Best.of_none(queries.cpu(), k), 0
    for chunk in chunks:
        # A chunk whose passages are all deleted is empty.
        for unit in widened(chunk).split(_BLOCK) if len(chunk) else ():
            cosines = (directions @ unit.to(directions.device, directions.dtype).T).cpu()
            few = min(k, len(unit))
            rows = torch.stack([torch.from_numpy(top_indices(row, few)) for row in cosines.numpy()])
            best.add(cosines.gather(1, rows), rows + first)
            first += len(unit)
    return best
