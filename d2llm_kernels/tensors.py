"""Number types: the one that tensors share, the one that sums are kept in, the one that autocast asks for."""

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor, nn


def promotion(*tensors: Tensor) -> torch.dtype:
    """The widest dtype among the tensors."""
    return reduce(torch.promote_types, (tensor.dtype for tensor in tensors))


def promoted(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in the widest dtype among them."""
    dtype = promotion(*tensors)
    return tuple(tensor.to(dtype) for tensor in tensors)


def accumulate_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """Type in which sums are kept: float64 when any input is, float32 otherwise."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def autocasts(tensor: Tensor) -> bool:
    """Whether autocast is on for the tensor's device."""
    device = tensor.device.type
    return _has_autocast(device) and torch.is_autocast_enabled(device)


# Torch 2.9 cannot follow the question into a graph.
@torch.compiler.assume_constant_result
def _has_autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device)


def autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in autocast's dtype where it is on; float64 is left alone, as autocast itself does."""
    if not autocasts(tensors[0]):
        return tensors
    dtype = torch.get_autocast_dtype(tensors[0].device.type)
    return tuple(tensor if tensor.dtype == torch.float64 else tensor.to(dtype) for tensor in tensors)


def cast_like(gradients: Sequence[Tensor], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Gradients in the dtypes of the inputs that they belong to."""
    return tuple(gradient.to(tensor.dtype) for gradient, tensor in zip(gradients, inputs, strict=True))


def unwanted(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Empty tensors in the place of gradients that nobody wants."""
    return tuple(tensor.new_empty(0) for tensor in tensors)


def empty_gradients(tensors: Sequence[Tensor], wanted: Sequence[bool]) -> tuple[Tensor, ...]:
    """Gradients as the backends return them, without values: (0,) where none is wanted."""
    return tuple(
        torch.empty_like(tensor, memory_format=torch.contiguous_format) if want else tensor.new_empty(0)
        for tensor, want in zip(tensors, wanted, strict=True)
    )


def given_gradients(gradients: Sequence[Tensor], wanted: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """Gradients as autograd takes them: None where none was wanted."""
    return tuple(gradient if want else None for gradient, want in zip(gradients, wanted, strict=True))


def is_plain(weight: Tensor) -> bool:
    """Whether it is a floating tensor of torch's own: torchao's say that they are floating, and hold fewer bits."""
    return weight.is_floating_point() and type(weight) in (Tensor, nn.Parameter)
