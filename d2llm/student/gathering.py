"""One batch over several processes: every process holds the rows of all, in their order, and learns from its own."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def gathered(mine: Tensor) -> Tensor:
    """The rows of all W processes, by rank: (B, ...) -> (W B, ...); every process calls it with the same shape.

    Gradients reach the rows of this process, W times as large. Where every process computes the same loss from all
    rows, the gradient of its own is whole without an exchange, and the mean over processes, which DDP and FSDP take of
    the gradients of weights, then is what one process would have found that held all rows.
    """
    if mine.dtype == torch.bool:
        # Not every backend carries bools.
        return gathered(mine.view(torch.uint8)).view(torch.bool)
    result: Tensor = _Gathered.apply(mine)
    return result


class _Gathered(torch.autograd.Function):
    """All rows forward, the own ones backward."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor) -> Tensor:
        parts = [torch.empty_like(mine, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, mine.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        world = dist.get_world_size()
        return gradient.chunk(world)[dist.get_rank()] * world
