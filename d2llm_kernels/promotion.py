"""One dtype for kernels that take one: the widest among their inputs."""

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor


def promotion(*tensors: Tensor) -> torch.dtype:
    """The widest dtype among the tensors."""
    return reduce(torch.promote_types, (tensor.dtype for tensor in tensors))


def promoted(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in the widest dtype among them."""
    dtype = promotion(*tensors)
    return tuple(tensor.to(dtype) for tensor in tensors)


def cast_like(gradients: Sequence[Tensor], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Gradients in the dtypes of the inputs that they belong to."""
    return tuple(gradient.to(tensor.dtype) for gradient, tensor in zip(gradients, inputs, strict=True))


def unwanted(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Empty tensors in the place of gradients that nobody wants."""
    return tuple(tensor.new_empty(0) for tensor in tensors)
