"""Linear layers: the projections of PMA and IEM."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from d2llm_kernels import backends
from d2llm_kernels.errors import require, shape
from d2llm_kernels.tensors import autocasts

#: Rows that a layer must have for the C++ kernels: they keep one in each lane, and fewer leave lanes idle.
LINEAR_ROWS = 16


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, backend: str = "auto") -> Tensor:
    """A linear layer, or one for each group of rows: the projections of PMA and IEM.

    Where the backend has a matrix product of its own ("cpu" has), float32 rows go through it if there are enough of
    them; everything else is torch's.

    Args:
        x: (..., K), or (G, N, K) with grouped weights.
        weight: (M, K) or (G, M, K), of the dtype of x. bias: (M,) or (G, M), or None.
        backend: one of ``backends.NAMES``.

    Returns:
        (..., M), or (G, N, M).

    Raises:
        ArgumentError: on shapes that do not fit.
        BackendError: if a backend named explicitly is missing or takes no such tensors.
    """
    grouped = weight.dim() == 3
    fits = weight.dim() in (2, 3) and x.shape[-1:] == weight.shape[-1:]
    fits = fits and (not grouped or (x.dim() == 3 and x.shape[0] == weight.shape[0]))
    require(fits, "x", f"rows for a weight of {shape(weight)}", shape(x))
    if bias is not None:
        require(bias.shape == weight.shape[:-1], "bias", f"shape {shape(weight)[:-1]}", shape(bias))
    chosen = backends.select("linear", backend, x.device, x.dtype)
    if backends.named(chosen).linear() is not None and _fits(x, weight):
        rows, weights = (x, weight) if grouped else (x.reshape(1, -1, x.shape[-1]), weight[None])
        y = linear_operator(rows, weights, bias if grouped or bias is None else bias[None], chosen)
        return y if grouped else y.view(*x.shape[:-1], -1)
    if not grouped:
        return F.linear(x, weight, bias)
    return torch.bmm(x, weight.mT) if bias is None else torch.baddbmm(bias[:, None], x, weight.mT)


def _fits(x: Tensor, weight: Tensor) -> bool:
    """Whether a layer is one that a backend's own product does better than torch's."""
    rows = x.shape[1] if weight.dim() == 3 else x.shape[:-1].numel()
    return x.dtype == weight.dtype == torch.float32 and not autocasts(x) and rows >= LINEAR_ROWS and x.shape[-1] > 0


@torch.library.custom_op("d2llm::linear", mutates_args=())
def linear_operator(x: Tensor, weight: Tensor, bias: Tensor | None, backend: str) -> Tensor:
    """The work of ``linear`` by a backend that has a product of its own: x (G, N, K), weight (G, M, K), bias (G, M)."""
    own = backends.named(backend).linear()
    assert own is not None
    return own.linear(x, weight, bias)


@linear_operator.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, backend: str) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1], weight.shape[1])


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:2])


def _differentiate(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    x, weight = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    dx = dy @ weight if wanted[0] else None
    dweight = dy.transpose(1, 2) @ x if wanted[1] else None
    return dx, dweight, dy.sum(1) if wanted[2] else None, None


linear_operator.register_autograd(_differentiate, setup_context=_save)
