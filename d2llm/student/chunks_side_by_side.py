"""The chunks of a training step side by side on a CPU, each in one thread, forward and backward.

Embeddings of texts do not depend on each other, so that between the losses, which need all of them, and the weights
every chunk is a graph of its own. One node stands for all of them in the graph of the step: weights are its inputs, so
that their gradients flow as any others do, and its backward pass takes the chunks' passes in as many threads as torch
has. What they find is summed in the order of the chunks: the same step has the same bits.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from d2llm.side_by_side import side_by_side

Chunk = tuple[Tensor, Tensor]
_CPU = torch.device("cpu")


def fits(module: nn.Module) -> bool:
    """Whether a module draws no random numbers: all threads draw from one state, in the order that they come by."""
    return not any(part.training and _drops(part) for part in module.modules())


def _drops(module: nn.Module) -> bool:
    if isinstance(module, nn.Dropout):
        return module.p > 0
    return any("drop" in name and isinstance(value, float) and value > 0 for name, value in vars(module).items())


def embedded(
    embed: Callable[..., Tensor], chunks: Sequence[Chunk], weights: Sequence[Tensor], again: bool = False
) -> Tensor:
    """``embed`` of every chunk, one below the other: (N, D).

    Args:
        embed: a chunk's tokens (n, L) and mask (n, L) to embeddings (n, D), the same at every call.
        chunks: on a CPU.
        weights: what ``embed`` reads and gets a gradient.
        again: keep nothing but the embeddings, and compute a chunk once more when its gradient is there.
    """
    result: Tensor = _SideBySide.apply(_Pass(embed, chunks, again), *weights)
    return result


class _Pass:
    """Forward and backward of all chunks in threads."""

    def __init__(self, embed: Callable[..., Tensor], chunks: Sequence[Chunk], again: bool) -> None:
        self.embed, self.chunks, self.again = embed, chunks, again
        self.graphs: list[Tensor] = []
        dtype = torch.get_autocast_dtype("cpu")
        # Without its cache, which all threads share: a weight's cast would hang in the graph of one of them.
        self.autocast = torch.autocast("cpu", dtype, torch.is_autocast_enabled("cpu"), cache_enabled=False)

    def _embed(self, chunk: Chunk) -> Tensor:
        with self.autocast:
            return self.embed(*chunk)

    def forward(self) -> Tensor:
        def run(chunk: Chunk) -> Tensor:
            with torch.set_grad_enabled(not self.again):
                return self._embed(chunk)

        found = list(side_by_side(run, self.chunks, _CPU, enough=1))
        if not self.again:
            self.graphs = found
        return torch.cat([each.detach() for each in found])

    def backward(self, gradient: Tensor, wanted: Sequence[Tensor]) -> list[Tensor | None]:
        def run(number: int) -> tuple[Tensor | None, ...]:
            with torch.enable_grad():
                vectors = self._embed(self.chunks[number]) if self.again else self.graphs[number]
            return torch.autograd.grad(vectors, wanted, parts[number], allow_unused=True)

        parts = gradient.split([len(tokens) for tokens, _ in self.chunks])
        total: list[Tensor | None] = [None] * len(wanted)
        # Recomputed layers put the random state back where they began, each thread for itself.
        with torch.random.fork_rng([]):
            for found in side_by_side(run, range(len(parts)), _CPU, enough=1):
                total = [_sum(each, more) for each, more in zip(total, found, strict=True)]
        return total


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other


class _SideBySide(torch.autograd.Function):
    """One node for all chunks."""

    @staticmethod
    def forward(ctx: Any, chunks: _Pass, *weights: Tensor) -> Tensor:
        ctx.chunks = chunks
        ctx.save_for_backward(*weights)
        return chunks.forward()

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[1:]
        wanted = [weight for weight, need in zip(ctx.saved_tensors, needed, strict=True) if need]
        found = iter(ctx.chunks.backward(gradient, wanted))
        return (None, *(next(found) if need else None for need in needed))
