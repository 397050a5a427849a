"""Cached gradients: a batch of any size at the memory of one chunk (Gao et al. 2021, arXiv 2101.06983).

A function of a chunk is run without a graph, and again with one when the gradient of its result is there: what lies
between is held for one chunk at a time. Weights are inputs of the node that stands in the graph for the chunk, so that
their gradients flow as any others do: summed over chunks and accumulation steps, and reduced once over processes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import get_device_states, set_device_states


def cached(function: Callable[..., Any], inputs: Sequence[Tensor], weights: Sequence[Tensor]) -> Any:
    """``function(*inputs)``, of which only inputs and result are kept until its gradient is asked for.

    Both runs see the same random numbers and the same autocast, so that dropout repeats.

    Args:
        function: returns a tensor, or a tuple of tensors.
        inputs: its arguments, on one device; those that require a gradient get one.
        weights: further tensors that it reads and that get a gradient, such as parameters.
    """
    result = _Cached.apply(_Repeatable(function, inputs[0].device, inputs), len(inputs), *inputs, *weights)
    return result[0] if len(result) == 1 else result


class _Repeatable:
    """A function that can be run again as it was run first."""

    def __init__(self, function: Callable[..., Any], device: torch.device, inputs: Sequence[Tensor]) -> None:
        self.function = function
        self.device = device.type
        self.random_state = torch.get_rng_state()
        self.devices, self.device_states = get_device_states(*inputs)
        # A weight that autocast had cast without a graph would come out of its cache without one the second time.
        self.autocast = torch.autocast(
            self.device,
            torch.get_autocast_dtype(self.device),
            torch.is_autocast_enabled(self.device),
            cache_enabled=False,
        )

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        with self.autocast:
            result = self.function(*inputs)
        return result if isinstance(result, tuple) else (result,)

    def again(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        with torch.random.fork_rng(self.devices, device_type=self.device), torch.enable_grad():
            torch.set_rng_state(self.random_state)
            set_device_states(self.devices, self.device_states, device_type=self.device)
            return self(*inputs)


class _Cached(torch.autograd.Function):
    """One node for a whole chunk."""

    @staticmethod
    def forward(ctx: Any, run: _Repeatable, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.run, ctx.count = run, count
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        return run(*tensors[:count])

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[2:]
        if all(gradient is None for gradient in gradients):
            return (None, None, *(None for _ in needed))
        inputs, weights = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count :]
        inputs = [tensor.detach().requires_grad_(need) for tensor, need in zip(inputs, needed, strict=False)]
        results = zip(ctx.run.again(*inputs), gradients, strict=True)
        reached, given = zip(*(pair for pair in results if pair[1] is not None), strict=True)
        wanted = [tensor for tensor, need in zip([*inputs, *weights], needed, strict=True) if need]
        found = iter(torch.autograd.grad(reached, wanted, given, allow_unused=True))
        return (None, None, *(next(found) if need else None for need in needed))
