"""The best passages of each query from keys that the Triton and the CUDA kernels write."""

from collections.abc import Callable

import torch
from torch import Tensor

# Keys of a block of passages: 64 MiB.
_TOPK_BYTES = 1 << 26


def topk(a: Tensor, b: Tensor, k: int, score: Callable[[Tensor, Tensor, int], None]) -> tuple[Tensor, Tensor]:
    """Running best k of each query over blocks of passages, values and indices (Nq, k).

    Score and index are one integer, so that no two are equal and any exact selection gives the one right answer.

    Args:
        score: writes the keys of the queries with a block of passages: (passages, keys, number of the first passage).
    """
    queries, passages = a.shape[0], b.shape[0]
    block = max(4 * k, _TOPK_BYTES // (8 * max(1, queries)))
    best = torch.empty(queries, 0, dtype=torch.int64, device=a.device)
    for start in range(0, passages if queries else 0, block):
        part = b[start : start + block]
        keys = best.new_empty(queries, best.shape[1] + part.shape[0])
        keys[:, : best.shape[1]] = best
        score(part, keys[:, best.shape[1] :], start)
        best = keys.topk(min(k, keys.shape[1]), sorted=True).values
    best = best if queries else best.new_empty(0, k)
    ordered = (best >> 32).int()
    values = (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).view(torch.float32)
    return values, 0xFFFFFFFF - (best & 0xFFFFFFFF)
