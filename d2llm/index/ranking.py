"""Exact ranking over chunks of passages: only the k best so far are kept."""

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from d2llm.bm25 import top_indices
from d2llm.index.stored import Int8Rows, Rows
from d2llm_kernels import IEM, backends, int8

#: Passages scored at a time: 16384 x 512 float32 values are 32 MB.
CHUNK = 16384

#: Positions (n,) int64, ascending, and the n stored vectors at them.
Chunk = tuple[Tensor, Rows]
#: Takes n stored vectors and k <= n; gives scores and rows, both (Nq, k), the lower row first among equals.
Scorer = Callable[[Any, int], tuple[Tensor, Tensor]]


def best(chunks: Iterable[Chunk], scorer: Scorer, k: int) -> tuple[Tensor, Tensor]:
    """The k best positions over all chunks, exactly.

    Args:
        chunks: in ascending order of position, at least k passages together.
        scorer: the k best of one chunk.
        k: how many.

    Returns:
        scores (Nq, k) float and positions (Nq, k) int64, on the CPU, best first, the lower position first among equals.
    """
    scores = positions = None
    for where, vectors in chunks:
        values, rows = scorer(vectors, min(k, len(where)))
        values, found = values.cpu(), where[rows.cpu()]
        if scores is not None and positions is not None:
            values, found = torch.cat([scores, values], dim=1), torch.cat([positions, found], dim=1)
        # What was kept lies at lower positions than the new chunk, so a stable sort keeps ties in order.
        scores, order = values.sort(dim=1, descending=True, stable=True)
        scores, positions = scores[:, :k], found.gather(1, order)[:, :k]
    assert scores is not None and positions is not None
    return scores, positions


def iem_scorer(head: IEM, queries: Tensor, task: int) -> Scorer:
    """Rank by IEM (paper section 3), given projected queries (Nq, F)."""

    def score(projected: Rows, k: int) -> tuple[Tensor, Tensor]:
        if isinstance(projected, Int8Rows):
            values, scale, centre = (part.to(queries.device) for part in projected.tensors().values())
            return head.topk(queries + centre, values, k, task, scale)
        return head.topk(queries, projected.to(queries.device, queries.dtype), k, task)

    return score


def fast_scorer(head: IEM, queries: Tensor, task: int) -> Scorer:
    """:func:`iem_scorer`, with a first look in bfloat16 where passages are stored so and a kernel multiplies it.

    Of a first look several times as many as are asked for are kept, and ranked as ``iem_scorer`` ranks them.
    """
    exact = iem_scorer(head, queries, task)
    if backends.select(head.backend, queries.device, torch.bfloat16) not in backends.KERNELS:
        return exact
    rough = copy.deepcopy(head).bfloat16()

    def score(projected: Rows, k: int) -> tuple[Tensor, Tensor]:
        kept = int8.candidates(k, len(projected))
        if isinstance(projected, Int8Rows) or projected.dtype != torch.bfloat16 or kept == len(projected):
            return exact(projected, k)
        found = rough.topk(queries.bfloat16(), projected.to(queries.device), kept, task)[1].cpu()
        return rerank(head, queries, found, projected.__getitem__, k, task)

    return score


def cosine_scorer(queries: Tensor) -> Scorer:
    """Rank by cosine, given query vectors (Nq, D); the stored vectors have unit length."""
    directions = torch.nn.functional.normalize(queries, dim=1)

    def score(unit: Tensor, k: int) -> tuple[Tensor, Tensor]:
        cosines = directions @ unit.to(directions.device, directions.dtype).T
        rows = torch.stack([torch.from_numpy(top_indices(row, k)) for row in cosines.cpu().numpy()])
        return cosines.cpu().gather(1, rows), rows

    return score


def rerank(
    head: IEM, queries: Tensor, candidates: Tensor, gather: Callable[[Tensor], Tensor], k: int, task: int
) -> tuple[Tensor, Tensor]:
    """The k best of each query's candidates by IEM.

    Args:
        queries: projected queries (Nq, F).
        candidates: positions (Nq, C) int64, C >= k.
        gather: ascending positions (C,) -> their projected passages (C, F).

    Returns:
        scores (Nq, k) and positions (Nq, k) int64, ordered as :func:`best` orders them.
    """
    ranked = []
    for query, positions in zip(queries, candidates.sort(dim=1).values, strict=True):
        ranked.append(best([(positions, gather(positions))], iem_scorer(head, query[None], task), k))
    scores, found = zip(*ranked, strict=True)
    return torch.cat(scores), torch.cat(found)


def split(positions: Tensor, vectors: Rows) -> Iterator[Chunk]:
    """Cut one segment's positions and vectors into chunks of at most ``CHUNK``; an empty segment gives none."""
    for start in range(0, len(positions), CHUNK):
        yield positions[start : start + CHUNK], vectors[start : start + CHUNK]
