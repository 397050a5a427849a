"""Weights in eight bits, a quarter of float32: what the package ships has to fit into its wheel.

A matrix NAME becomes int8 of the same shape, with NAME:scale bfloat16 (rows, 1) or (1, columns), whichever is less: the
step of each. A square one keeps its diagonal apart, NAME:diagonal (n,) float16: heads start at the identity, and a step
that reaches 1 would leave nothing of what they learnt beside it. A square one that is nothing but its diagonal is that
alone. All else is float16.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

_SCALE, _DIAGONAL = ":scale", ":diagonal"
_LARGEST = 127
#: Numbers from which on a matrix is worth it.
_LARGE = 4096


def shrink(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Floating tensors of any shape by name, in eight bits where they are matrices."""
    shrunk: dict[str, Tensor] = {}
    for name, value in tensors.items():
        value = value.detach().to("cpu", torch.float32)
        if value.dim() != 2 or value.numel() < _LARGE:
            shrunk[name] = value.half()
            continue
        if value.shape[0] == value.shape[1]:
            shrunk[name + _DIAGONAL] = value.diag().half()
            value = value.clone().fill_diagonal_(0)
            if not value.any():
                continue
        along = 1 if value.shape[0] <= value.shape[1] else 0
        scale = (value.abs().amax(dim=along, keepdim=True) / _LARGEST).bfloat16()
        steps = value / scale.float().clamp_min(torch.finfo(torch.float32).tiny)
        shrunk[name] = steps.round().clamp(-_LARGEST, _LARGEST).to(torch.int8)
        shrunk[name + _SCALE] = scale
    return shrunk


def restore(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What :func:`shrink` was given, rounded, in float32; tensors that it did not make are left as they are.

    Raises:
        KeyError: if the steps of a matrix are missing.
    """
    restored = {
        name: value.float() * tensors[name + _SCALE].float() if value.dtype == torch.int8 else value
        for name, value in tensors.items()
        if not name.endswith((_SCALE, _DIAGONAL))
    }
    for name, value in tensors.items():
        if name.endswith(_DIAGONAL):
            matrix = name.removesuffix(_DIAGONAL)
            restored[matrix] = restored.get(matrix, 0) + value.float().diag()
    return restored
