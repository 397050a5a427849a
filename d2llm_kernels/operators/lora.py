"""A linear layer with a low-rank adapter, LoRA (arXiv 2106.09685, section 4.1; docs/algebra.md, section 7)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from d2llm_kernels import backends
from d2llm_kernels.errors import require, shape
from d2llm_kernels.tensors import autocast, empty_gradients, given_gradients


def lora_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    scaling: float = 1.0,
    dropped: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """x weightᵀ + bias + scaling (x aᵀ) bᵀ, or with ``dropped`` in the place of the second x.

    Args:
        x: (..., K), any floating dtype.
        weight: (N, K) and bias: (N,) or None, of the dtype of x.
        a: (R, K) and b: (N, R), any floating dtype: both are rounded to that of x. Their gradients come in their own.
        scaling: what the adapter is multiplied by, alpha / R.
        dropped: (..., K) x after the dropout that only the adapter sees, or None for x itself.
        backend: one of ``backends.NAMES``.

    Returns:
        (..., N) in the dtype of x; under autocast all are of its dtype.

    Raises:
        ArgumentError: on shapes, dtypes or devices that do not fit.
        BackendError: if a backend named explicitly is missing or takes no such tensors.
    """
    _check(x, weight, bias, a, b, dropped)
    x, weight = autocast(x, weight)
    require(weight.dtype == x.dtype, "weight", f"the dtype of x, {x.dtype}", weight.dtype)
    bias, dropped = (None if each is None else each.to(x.dtype) for each in (bias, dropped))
    a, b = a.to(x.dtype), b.to(x.dtype)
    chosen = backends.select("lora_linear", backend, x.device, x.dtype)
    if formulas := backends.formulas(chosen):
        return formulas.lora_linear(x, weight, bias, a, b, scaling, dropped)
    rows, second = x.reshape(-1, x.shape[-1]), None if dropped is None else dropped.reshape(-1, x.shape[-1])
    y, _ = lora_linear_operator(rows, weight, bias, a, b, scaling, second, chosen)
    return y.view(*x.shape[:-1], weight.shape[0])


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, dropped: Tensor | None) -> None:
    require(x.is_floating_point() and x.dim() > 0, "x", "a floating point tensor (..., K)", f"{x.dtype} {shape(x)}")
    fits = weight.dim() == 2 and weight.shape[1] == x.shape[-1]
    require(fits, "weight", f"shape (N, {x.shape[-1]}) for x of {shape(x)}", shape(weight))
    require(a.dim() == 2 and a.shape[1] == x.shape[-1], "a", f"shape (R, {x.shape[-1]})", shape(a))
    expected = (weight.shape[0], a.shape[0])
    require(b.shape == expected, "b", f"shape {expected}", shape(b))
    require(bias is None or bias.shape == expected[:1], "bias", f"shape {expected[:1]}", bias is None or shape(bias))
    require(
        dropped is None or dropped.shape == x.shape, "dropped", f"shape {shape(x)}", dropped is None or shape(dropped)
    )
    for name, tensor in (("weight", weight), ("bias", bias), ("a", a), ("b", b), ("dropped", dropped)):
        if tensor is not None:
            require(tensor.device == x.device, name, f"device {x.device}", tensor.device)
            require(tensor.is_floating_point(), name, "a floating point tensor", tensor.dtype)


@torch.library.custom_op("d2llm::lora_linear", mutates_args=())
def lora_linear_operator(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    scaling: float,
    dropped: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """The work of ``lora_linear`` on rows (T, K), all of one dtype: y (T, N), and the adapter's inner values (T, R)."""
    return backends.named(backend).lora().lora_linear(x, weight, bias, a, b, scaling, dropped)


@lora_linear_operator.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    scaling: float,
    dropped: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0], weight.shape[0]), x.new_empty(x.shape[0], a.shape[0])


@torch.library.custom_op("d2llm::lora_linear_backward", mutates_args=())
def lora_linear_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    a: Tensor,
    b: Tensor,
    inner: Tensor,
    scaling: float,
    dropped: Tensor | None,
    backend: str,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight, a, b and dropped, each empty, (0,), unless it is ``wanted``.

    ``x`` may be (0,) where nothing but ``dropped`` and the two inner factors tell what is wanted.
    """
    return backends.named(backend).lora().lora_linear_backward(dy, x, weight, a, b, inner, scaling, dropped, wanted)


@lora_linear_backward.register_fake
def _(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    a: Tensor,
    b: Tensor,
    inner: Tensor,
    scaling: float,
    dropped: Tensor | None,
    backend: str,
    wanted: Sequence[bool],
) -> tuple[Tensor, ...]:
    rows = dy.new_empty(dy.shape[0], weight.shape[1])
    return empty_gradients((rows, weight, a, b, rows), wanted)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, weight, _, a, b, ctx.scaling, dropped, ctx.backend = inputs
    # A frozen layer's input is needed for the adapter alone, and that sees only what dropout left.
    needed = dropped is None or ctx.needs_input_grad[1]
    ctx.save_for_backward(x if needed else x.new_empty(0), weight, a, b, output[1], dropped)


def _differentiate(ctx: Any, dy: Tensor, dinner: Tensor | None) -> tuple[Any, ...]:
    x, weight, a, b, inner, dropped = ctx.saved_tensors
    of_x, of_weight, of_bias, of_a, of_b, _, of_dropped, _ = ctx.needs_input_grad
    wanted = (of_x, of_weight, of_a, of_b, of_dropped)
    found = lora_linear_backward(dy, x, weight, a, b, inner, ctx.scaling, dropped, ctx.backend, wanted)
    dx, dweight, da, db, ddropped = given_gradients(found, wanted)
    return dx, dweight, dy.sum(0) if of_bias else None, da, db, None, ddropped, None


lora_linear_operator.register_autograd(_differentiate, setup_context=_save)
