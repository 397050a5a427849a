"""The two losses over all pairs of a batch, in plain torch, a few rows at a time (docs/algebra.md, section 6).

Literally, pairwise rank imitation compares K hard negatives with B in-batch passages for each of B queries: several
tensors of B x K x B. Every row is independent of the others, so rows are taken in chunks whose triples stay in cache;
the largest tensor is the gradient, (B, B). The backward makes each chunk again and keeps nothing but the inputs.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from d2llm_kernels.branch import InBatch
from d2llm_kernels.tensors import accumulate_dtype, promotion


class _Rows:
    """Some rows of the batch in the accumulation dtype, and what takes part in each."""

    def __init__(self, rows: slice, batch: InBatch) -> None:
        wide = _wide(batch)
        z_in_batch, z_hard, s_hard, s_in_batch, duplicates, _ = batch
        self.rows = rows
        columns = torch.arange(z_in_batch.shape[1], device=z_in_batch.device)
        self.own = columns[rows, None] == columns
        self.others = ~self.own if duplicates is None else ~(self.own | duplicates[rows].bool())
        self.z = z_in_batch[rows].to(wide)
        self.z_own = z_in_batch.diagonal()[rows, None].to(wide)
        self.z_hard, self.s_hard = z_hard[rows].to(wide), s_hard[rows].to(wide)
        self.s = None if s_in_batch is None else s_in_batch[rows].to(wide)

    def logits(self, temperature: float) -> Tensor:
        """(rows, B), -inf where a column takes no part."""
        return (self.z / temperature).masked_fill_(~(self.others | self.own), -math.inf)

    def triples(self) -> tuple[Tensor, Tensor]:
        """max(0, s_ih - s_ie), 0 where a triple takes no part, and z_ie - z_ih: (rows, K, B) each."""
        judged = ~self.s_hard.isnan()
        hard, s_hard = self.z_hard.masked_fill(~judged, 0), self.s_hard.masked_fill(~judged, -math.inf)
        easy, s_easy = self.z.masked_fill(~self.others, 0), torch.zeros_like(self.z) if self.s is None else self.s
        s_easy = s_easy.masked_fill(s_easy.isnan(), 0).masked_fill_(~self.others, math.inf)
        gap = (s_hard[:, :, None] - s_easy[:, None, :]).clamp_min_(0)
        return gap, easy[:, None, :] - hard[:, :, None]


def chunk_elements(device: torch.device) -> int:
    """Triples in a chunk: on a CPU a float32 buffer takes half a core's L2; accelerators want more work."""
    return (1 << 17) * torch.get_num_threads() if device.type == "cpu" else 1 << 22


def in_batch_terms(batch: InBatch) -> tuple[Tensor, Tensor]:
    """Forward of ``functional.in_batch_terms``: cross-entropy and pairwise sums of each row, (B,) each."""
    z_in_batch, z_hard, *_, temperature = batch
    cross_entropy = z_in_batch.new_empty(z_in_batch.shape[0], dtype=_wide(batch))
    pairwise = torch.zeros_like(cross_entropy)
    for rows in _chunks(z_in_batch, z_hard):
        chunk = _Rows(rows, batch)
        # Differences to the diagonal first: the loss is small where logits are large and close.
        cross_entropy[rows] = torch.logsumexp(chunk.logits(temperature) - chunk.z_own / temperature, 1)
        if z_hard.shape[1]:
            gap, below = chunk.triples()
            pairwise[rows] = -gap.mul_(F.logsigmoid(below.neg_())).sum((1, 2))
    return cross_entropy, pairwise


def in_batch_terms_backward(
    dcross_entropy: Tensor | None, dpairwise: Tensor | None, batch: InBatch
) -> tuple[Tensor, Tensor]:
    """Gradients of ``in_batch_terms`` with respect to z_in_batch and z_hard; None stands for a gradient of 0."""
    z_in_batch, z_hard, *_, temperature = batch
    dz_in_batch = torch.empty_like(z_in_batch, memory_format=torch.contiguous_format)
    dz_hard = torch.zeros_like(z_hard, memory_format=torch.contiguous_format)
    for rows in _chunks(z_in_batch, z_hard):
        chunk = _Rows(rows, batch)
        if dcross_entropy is None:
            dz = torch.zeros_like(chunk.z)
        else:
            dz = torch.softmax(chunk.logits(temperature), 1).sub_(chunk.own.to(chunk.z.dtype))
            dz *= dcross_entropy[rows, None] / temperature
        if dpairwise is not None and z_hard.shape[1]:
            gap, below = chunk.triples()
            dbelow = gap.mul_(below.sigmoid_()).mul_(dpairwise[rows, None, None])
            dz += dbelow.sum(1)
            dz_hard[rows] = -dbelow.sum(2)
        dz_in_batch[rows] = dz
    return dz_in_batch, dz_hard


def _wide(batch: InBatch) -> torch.dtype:
    return accumulate_dtype(promotion(*batch.scores()))


def _chunks(z_in_batch: Tensor, z_hard: Tensor) -> Iterator[slice]:
    triples = z_in_batch.shape[1] * max(1, z_hard.shape[1])
    height = max(1, chunk_elements(z_in_batch.device) // triples)
    for start in range(0, z_in_batch.shape[0], height):
        yield slice(start, start + height)
