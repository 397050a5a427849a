"""Linear layers on the C++ kernels, in float32."""

from torch import Tensor

from d2llm_kernels.backends.cpu.library import operators


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Forward of the operator behind ``functional.linear``, in float32."""
    return operators().linear(x, weight, bias)
