"""Rows of a linear layer with LoRA, beside the two products and the sum that it is literally."""

import torch
from torch import Tensor

from d2llm_kernels import functional, reference
from d2llm_kernels.measure.case import FOLDED, Call, Case, Prepared, Wrap
from d2llm_kernels.measure.contract import Verdict, judge
from d2llm_kernels.measure.passes import NAMES

_SCALING = 2.0


class Layer:
    """Rows x (T, K), a frozen weight (N, K), factors of rank R, and the slope of the result."""

    def __init__(self, device: torch.device, dtype: torch.dtype, rows: int, depth: int, width: int, rank: int) -> None:
        shapes = ((rows, depth), (width, depth), (rank, depth), (width, rank))
        self.x, self.weight, self.a, self.b = (
            torch.randn(shape, device=device, dtype=dtype) / shape[-1] ** 0.5 for shape in shapes
        )
        self.slope = torch.randn(rows, width, device=device, dtype=dtype)

    def forward(self, backend: str) -> tuple[Tensor]:
        """y."""
        return (functional.lora_linear(self.x, self.weight, None, self.a, self.b, _SCALING, backend=backend),)

    def both(self, backend: str) -> tuple[Tensor, ...]:
        """y and the gradients of x and of both factors."""
        x, a, b = (each.detach().requires_grad_() for each in (self.x, self.a, self.b))
        y = functional.lora_linear(x, self.weight, None, a, b, _SCALING, backend=backend)
        return (y.detach(), *torch.autograd.grad(y, (x, a, b), self.slope))

    def literal(self, dtype: torch.dtype, gradients: bool) -> tuple[Tensor, ...]:
        """The same from the formula, the factors' gradients summed wide and rounded once."""
        x, a, b = (each.detach().to(dtype).requires_grad_(gradients) for each in (self.x, self.a, self.b))
        y = reference.lora_linear(x, self.weight.to(dtype), None, a, b, _SCALING)
        if not gradients:
            return (y,)
        return (y.detach(), *torch.autograd.grad(y, (x, a, b), self.slope.to(dtype)))

    def check(self, backend: str, gradients: bool) -> Verdict:
        """Judge a backend."""
        got = self.both(backend) if gradients else self.forward(backend)
        same, exact = (self.literal(dtype, gradients) for dtype in (self.x.dtype, torch.float64))
        return judge(got, same, exact, self.x.dtype, terms=max(*self.x.shape, len(self.weight)))


def lora(passes: str, dtype: torch.dtype, rows: int, depth: int, width: int, rank: int = 16, priority: int = 2) -> Case:
    """A row of ``lora_linear``: ``passes`` "f" or "fb"; backward goes to x and the factors."""
    gradients = passes == "fb"

    def prepare(device: torch.device) -> Prepared:
        layer = Layer(device, dtype, rows, depth, width, rank)
        product, thin = 2 * rows * depth * width, 2 * rows * rank * (depth + width)
        item = layer.x.element_size()
        moved = rows * (depth + width) + depth * width

        def kernel(backend: str) -> Call:
            return Call(lambda: (layer.both if gradients else layer.forward)(backend))

        def literal(wrap: Wrap) -> Call:
            return Call(wrap(lambda: layer.literal(dtype, gradients)))

        return Prepared(
            2 * product + 3 * thin if gradients else product + thin,
            item * (2 if gradients else 1) * moved,
            kernel,
            literal,
            lambda backend: layer.check(backend, gradients),
            # The layer's own result, the adapter's and what it is scaled to.
            literal_bytes=3 * item * rows * width,
            items=("tokens", rows),
        )

    shape = f"{rows} x {depth} -> {width} R={rank}"
    backends = ("triton", FOLDED)
    return Case(f"lora_linear {NAMES[passes]}", shape, dtype, priority, prepare, backends=backends)
