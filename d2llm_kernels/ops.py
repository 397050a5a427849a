"""The kernels as torch.library operators (namespace ``d2llm``): schema, fake, autograd.

Each operator takes the name of the backend that does the work, chosen beforehand in ``backends``; the
``reference`` backend never comes here, because autograd differentiates its formulas itself.
"""

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from d2llm_kernels.checks import accumulate_dtype
from d2llm_kernels.iem_folded import Branch
from d2llm_kernels.promotion import unwanted
from d2llm_kernels.tasks import PerTask

# Modules with the functions of each backend; imported at the first call that needs them.
_POOLING = {"folded": "pool_folded", "cpu": "cpu", "triton": "triton", "cuda": "cuda"}
_INTERACTION = {"folded": "iem_folded", "cpu": "cpu", "triton": "triton", "cuda": "cuda"}
# Interaction backends whose kernels look up the task of each row; the others are asked once a task.
_ANY_TASK = ("triton",)
# There are no losses in CUDA C++.
_IN_BATCH = {"folded": "in_batch_folded", "cpu": "cpu", "triton": "triton", "cuda": "in_batch_folded"}


@cache
def _module(name: str) -> ModuleType:
    return import_module(f"d2llm_kernels.{name}")


def _interaction(backend: str) -> Any:
    """The functions of a backend for rows of one task or of several."""
    module = _module(_INTERACTION[backend])
    return module if backend in _ANY_TASK else PerTask(module)


def _like(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in tensors)


def _like_wanted(tensors: Sequence[Tensor], wanted: Sequence[bool]) -> tuple[Tensor, ...]:
    """Gradients as the backends return them: empty ones, (0,), where none is wanted."""
    return tuple(_like(t)[0] if want else t.new_empty(0) for t, want in zip(tensors, wanted, strict=True))


def _given(gradients: Sequence[Tensor], wanted: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """Gradients as autograd takes them: None where none was wanted."""
    return tuple(gradient if want else None for gradient, want in zip(gradients, wanted, strict=True))


@torch.library.custom_op("d2llm::attn_pool", mutates_args=())
def attn_pool(
    x: Tensor, u: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None, backend: str
) -> tuple[Tensor, Tensor]:
    """Operator behind ``functional.attn_pool``."""
    return _module(_POOLING[backend]).attn_pool(x, u, mask, cu_seqlens)


@attn_pool.register_fake
def _(x: Tensor, u: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None, backend: str) -> tuple[Tensor, Tensor]:
    batch = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    pooled = x.new_empty(batch, u.shape[0], u.shape[1], dtype=torch.promote_types(x.dtype, u.dtype))
    return pooled, x.new_empty(batch, u.shape[0], dtype=accumulate_dtype(x.dtype, u.dtype))


@torch.library.custom_op("d2llm::attn_pool_backward", mutates_args=())
def attn_pool_backward(
    dpooled: Tensor,
    dlse: Tensor | None,
    x: Tensor,
    u: Tensor,
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
    backend: str,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    """Gradients of ``attn_pool`` for x and u, each empty, (0,), unless it is ``wanted``."""
    return _module(_POOLING[backend]).attn_pool_backward(dpooled, dlse, x, u, mask, cu_seqlens, wanted)


@attn_pool_backward.register_fake
def _(
    dpooled: Tensor,
    dlse: Tensor | None,
    x: Tensor,
    u: Tensor,
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
    backend: str,
    wanted: Sequence[bool],
) -> tuple[Tensor, ...]:
    return _like_wanted((x, u), wanted)


def _save_pool(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:4])
    ctx.backend = inputs[4]
    ctx.pooled = (output[0].shape, output[0].dtype)


def _differentiate_pool(ctx: Any, dpooled: Tensor | None, dlse: Tensor | None) -> tuple[Any, ...]:
    x, u, mask, cu_seqlens = ctx.saved_tensors
    if dpooled is None:
        dpooled = x.new_zeros(ctx.pooled[0], dtype=ctx.pooled[1])
    wanted = ctx.needs_input_grad[:2]
    gradients = attn_pool_backward(dpooled, dlse, x, u, mask, cu_seqlens, ctx.backend, wanted)
    return *_given(gradients, wanted), None, None, None


attn_pool.register_autograd(_differentiate_pool, setup_context=_save_pool)


@torch.library.custom_op("d2llm::iem_scores", mutates_args=())
def iem_scores(
    a: Tensor,
    b: Tensor,
    weight: Tensor,
    bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    task: Tensor | None,
    backend: str,
) -> Tensor:
    """Operator behind ``functional.iem_scores``."""
    return _interaction(backend).iem_scores(a, b, Branch(weight, bias, out_weight, out_bias), task)


@iem_scores.register_fake
def _(a: Tensor, b: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[0], dtype=accumulate_dtype(a.dtype, b.dtype, weight.dtype))


@torch.library.custom_op("d2llm::iem_scores_backward", mutates_args=())
def iem_scores_backward(
    dz: Tensor,
    a: Tensor,
    b: Tensor,
    weight: Tensor,
    bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    task: Tensor | None,
    backend: str,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of ``iem_scores`` for its six tensors; ``wanted`` says whether for a and b, and for the weights."""
    branch = Branch(weight, bias, out_weight, out_bias)
    return _interaction(backend).iem_scores_backward(dz, a, b, branch, task, wanted)


@iem_scores_backward.register_fake
def _(dz: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    return _gradients_like(inputs[:6], inputs[-1])


def _gradients_like(inputs: Sequence[Tensor], wanted: Sequence[bool]) -> tuple[Tensor, ...]:
    both, weights = inputs[:2], inputs[2:]
    return *(_like(*both) if wanted[0] else unwanted(*both)), *(_like(*weights) if wanted[1] else unwanted(*weights))


def _wanted(ctx: Any) -> list[bool]:
    needed = ctx.needs_input_grad
    return [any(needed[:2]), any(needed[2:6])]


def _needed(ctx: Any, gradients: Sequence[Tensor]) -> list[Tensor | None]:
    """The gradients of the six tensors, None where none is needed."""
    needed = ctx.needs_input_grad
    return [gradient if given else None for gradient, given in zip(gradients, needed[:6], strict=True)]


def _save_scores(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:7])
    ctx.backend = inputs[7]


def _differentiate_scores(ctx: Any, dz: Tensor) -> tuple[Any, ...]:
    gradients = iem_scores_backward(dz, *ctx.saved_tensors, ctx.backend, _wanted(ctx))
    return *_needed(ctx, gradients), None, None


iem_scores.register_autograd(_differentiate_scores, setup_context=_save_scores)


@torch.library.custom_op("d2llm::iem_pairs", mutates_args=())
def iem_pairs(
    a: Tensor,
    b: Tensor,
    weight: Tensor,
    bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    task: Tensor | None,
    return_features: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Operator behind ``functional.iem_pairs``, on rows."""
    branch = Branch(weight, bias, out_weight, out_bias)
    return _interaction(backend).iem_pairs(a, b, branch, task, return_features)


@iem_pairs.register_fake
def _(
    a: Tensor,
    b: Tensor,
    weight: Tensor,
    bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    task: Tensor | None,
    return_features: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), weight.dtype)
    kept = a.shape[0] if return_features else 0
    return a.new_empty(a.shape[0], dtype=accumulate_dtype(dtype)), a.new_empty(kept, a.shape[1], dtype=dtype)


@torch.library.custom_op("d2llm::iem_pairs_backward", mutates_args=())
def iem_pairs_backward(
    dz: Tensor,
    dfeatures: Tensor | None,
    a: Tensor,
    b: Tensor,
    weight: Tensor,
    bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    task: Tensor | None,
    backend: str,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of ``iem_pairs`` for its six tensors; ``wanted`` as in ``iem_scores_backward``."""
    branch = Branch(weight, bias, out_weight, out_bias)
    return _interaction(backend).iem_pairs_backward(dz, dfeatures, a, b, branch, task, wanted)


@iem_pairs_backward.register_fake
def _(dz: Tensor, dfeatures: Tensor | None, *inputs: Any) -> tuple[Tensor, ...]:
    return _gradients_like(inputs[:6], inputs[-1])


def _save_pairs(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:7])
    ctx.return_features, ctx.backend = inputs[7:]
    ctx.scores = (output[0].shape, output[0].dtype)


def _differentiate_pairs(ctx: Any, dz: Tensor | None, dfeatures: Tensor | None) -> tuple[Any, ...]:
    a = ctx.saved_tensors[0]
    if dz is None:
        dz = a.new_zeros(ctx.scores[0], dtype=ctx.scores[1])
    if not ctx.return_features:
        dfeatures = None
    gradients = iem_pairs_backward(dz, dfeatures, *ctx.saved_tensors, ctx.backend, _wanted(ctx))
    return *_needed(ctx, gradients), None, None, None


iem_pairs.register_autograd(_differentiate_pairs, setup_context=_save_pairs)


@torch.library.custom_op("d2llm::iem_topk", mutates_args=())
def iem_topk(
    a: Tensor,
    b: Tensor,
    weight: Tensor,
    bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    task: Tensor | None,
    k: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Operator behind ``functional.iem_topk``; not differentiable."""
    return _interaction(backend).iem_topk(a, b, Branch(weight, bias, out_weight, out_bias), task, k)


@iem_topk.register_fake
def _(
    a: Tensor,
    b: Tensor,
    weight: Tensor,
    bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    task: Tensor | None,
    k: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    dtype = accumulate_dtype(a.dtype, b.dtype, weight.dtype)
    return a.new_empty(a.shape[0], k, dtype=dtype), a.new_empty(a.shape[0], k, dtype=torch.int64)


@torch.library.custom_op("d2llm::linear", mutates_args=())
def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Operator behind ``functional.linear`` where the C++ kernels do it: x (G, N, K), weight (G, M, K), bias (G, M)."""
    return _module("cpu").linear(x, weight, bias)


@linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1], weight.shape[1])


def _save_linear(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:2])


def _differentiate_linear(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    x, weight = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    dx = dy @ weight if wanted[0] else None
    dweight = dy.transpose(1, 2) @ x if wanted[1] else None
    return dx, dweight, dy.sum(1) if wanted[2] else None


linear.register_autograd(_differentiate_linear, setup_context=_save_linear)


@torch.library.custom_op("d2llm::in_batch_terms", mutates_args=())
def in_batch_terms(
    z_in_batch: Tensor,
    z_hard: Tensor,
    s_hard: Tensor,
    s_in_batch: Tensor | None,
    duplicates: Tensor | None,
    temperature: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Operator behind ``functional.in_batch_terms``."""
    module = _module(_IN_BATCH[backend])
    return module.in_batch_terms(z_in_batch, z_hard, s_hard, s_in_batch, duplicates, temperature)


@in_batch_terms.register_fake
def _(
    z_in_batch: Tensor,
    z_hard: Tensor,
    s_hard: Tensor,
    s_in_batch: Tensor | None,
    duplicates: Tensor | None,
    temperature: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    teacher = (s_hard.dtype,) if s_in_batch is None else (s_hard.dtype, s_in_batch.dtype)
    dtype = accumulate_dtype(z_in_batch.dtype, z_hard.dtype, *teacher)
    rows = z_in_batch.new_empty(z_in_batch.shape[0], dtype=dtype)
    return rows, torch.empty_like(rows)


@torch.library.custom_op("d2llm::in_batch_terms_backward", mutates_args=())
def in_batch_terms_backward(
    dcross_entropy: Tensor | None,
    dpairwise: Tensor | None,
    z_in_batch: Tensor,
    z_hard: Tensor,
    s_hard: Tensor,
    s_in_batch: Tensor | None,
    duplicates: Tensor | None,
    temperature: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Gradients of ``in_batch_terms`` for the student's two tensors."""
    inputs = (z_in_batch, z_hard, s_hard, s_in_batch, duplicates, temperature)
    return _module(_IN_BATCH[backend]).in_batch_terms_backward(dcross_entropy, dpairwise, *inputs)


@in_batch_terms_backward.register_fake
def _(
    dcross_entropy: Tensor | None, dpairwise: Tensor | None, z_in_batch: Tensor, z_hard: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    return _like(z_in_batch, z_hard)


def _save_in_batch(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:5])
    ctx.temperature, ctx.backend = inputs[5:]


def _differentiate_in_batch(ctx: Any, dcross_entropy: Tensor | None, dpairwise: Tensor | None) -> tuple[Any, ...]:
    inputs = (*ctx.saved_tensors, ctx.temperature, ctx.backend)
    return (*in_batch_terms_backward(dcross_entropy, dpairwise, *inputs), None, None, None, None, None)


in_batch_terms.register_autograd(_differentiate_in_batch, setup_context=_save_in_batch)
