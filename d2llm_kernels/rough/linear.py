"""Linear layers in whole numbers, for inference: a row of the weights, and each row that comes, is rounded to int8.

A row's largest value is 127 of its own steps, so that a text's result does not depend on its company. Products and
their sums are exact; two roundings to a step and those of float32 at the end are all that is lost. The C++ kernels
multiply bytes where the CPU has VNNI and pairs of int16 elsewhere, two to four times as many at once as floats; other
backends multiply the same whole numbers in float32. Method: docs/kernels/cpu.md.
"""

import torch
from torch import Tensor, nn

from d2llm_kernels import backends
from d2llm_kernels.backends.protocol import Int8
from d2llm_kernels.errors import require, shape
from d2llm_kernels.rough.rows import quantize

# What float32 counts to without a gap, in products of two numbers of int8.
_EXACT = (1 << 24) // (127 * 127)
# Deeper sums overflow int32.
_DEEPEST = 1 << 16


class Int8Linear(nn.Module):
    """``nn.Linear`` with its weight in int8: (..., K) in a floating dtype to (..., M) of that dtype.

    Not differentiable. A row with NaN or infinity becomes NaN; every instruction set gives the same result.

    Args:
        linear: the layer, whose weight (M, K) is finite, K to 65,536.
        backend: one of ``backends.NAMES``.

    Raises:
        ArgumentError: for a weight that is not finite, or deeper.
        BackendError: if a backend named explicitly is missing.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear, backend: str = "auto") -> None:
        super().__init__()
        weight = linear.weight.detach()
        require(
            0 < weight.shape[1] <= _DEEPEST, "linear", f"a weight (M, K) with K from 1 to {_DEEPEST}", shape(weight)
        )
        values, scale = quantize(weight)
        self._kernels = _kernels(backend, weight.device)
        self.register_buffer("weight", values if self._kernels is None else self._kernels.pack_linear_int8(values))
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float())

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """(..., K) to (..., M)."""
        rows = x.reshape(-1, x.shape[-1]).float()
        if self._kernels is None:
            y = _linear(rows, self.weight, self.scale, self.bias)
        else:
            y = self._kernels.linear_int8(rows, self.weight, self.scale, self.bias)
        return y.view(*x.shape[:-1], y.shape[-1]).to(x.dtype)


def replace_linear(module: nn.Module, backend: str = "auto") -> int:
    """Put an ``Int8Linear`` in the place of every ``nn.Linear`` below a module, and return how many there were."""
    found = 0
    for name, child in list(module.named_children()):
        if type(child) is nn.Linear:
            setattr(module, name, Int8Linear(child, backend))
            found += 1
        else:
            found += replace_linear(child, backend)
    return found


def _linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """x (N, K) float32, weight (M, K) int8: the literal form."""
    top = x.abs().amax(1, keepdim=True)
    # A number before the slash would be multiplied by the rounded inverse.
    inverse = torch.full_like(top, 127) / top
    # A row whose steps cannot be counted in float32 is one of zeros.
    counts = inverse.isfinite()
    step = torch.where(counts, top / 127, 0) + (x * 0).sum(1, keepdim=True)
    steps = torch.round(x * torch.where(counts, inverse, 0)).nan_to_num(0)
    sums = torch.zeros(len(x), len(weight), dtype=torch.int32, device=x.device)
    for some, values in zip(steps.split(_EXACT, 1), weight.split(_EXACT, 1), strict=True):
        sums += (some @ values.float().T).to(torch.int32)
    y = sums.float() * step * scale
    return y if bias is None else y + bias


def _kernels(backend: str, device: torch.device) -> Int8 | None:
    """The kernels that serve, None where torch does."""
    return backends.named(backends.select("linear", backend, device, torch.float32)).int8()
