"""Interaction scores: of all pairs, of given pairs, of the best of each query (docs/algebra.md, section 2)."""

from collections.abc import Sequence
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from d2llm_kernels import backends
from d2llm_kernels.branch import Branch
from d2llm_kernels.errors import require, shape
from d2llm_kernels.tensors import accumulate_dtype, autocast, empty_gradients, given_gradients, promotion

_Six: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def check_interaction(
    a: Tensor,
    b: Tensor,
    weight: Tensor,
    bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    rank: int | None,
    stacked: bool = False,
) -> None:
    """Check projected queries ``a`` and passages ``b`` (..., F) against the weights of one IEM branch.

    Args:
        rank: number of dimensions that ``a`` and ``b`` must have, or None for any.
        stacked: whether weight and bias are those of several branches, (T, F, F) and (T, F).

    Raises:
        ArgumentError: on a wrong shape or a dtype that is not floating point.
    """
    named: Sequence[tuple[str, Tensor]] = (("a", a), ("b", b))
    weights = (("weight", weight), ("bias", bias), ("out_weight", out_weight), ("out_bias", out_bias))
    for name, tensor in (*named, *weights):
        require(tensor.is_floating_point(), name, "a floating point tensor", tensor.dtype)
    square = weight.dim() == 2 + stacked and weight.shape[-2] == weight.shape[-1] and 0 not in weight.shape[:-2]
    require(square, "weight", "shape (T, F, F)" if stacked else "shape (F, F)", shape(weight))
    width, branches = weight.shape[-1], weight.shape[:-2]
    require(width > 0, "weight", "a width F of at least 1", shape(weight))
    for name, tensor in named:
        if rank is None:
            require(tensor.dim() >= 1 and tensor.shape[-1] == width, name, f"shape (..., {width})", shape(tensor))
        else:
            require(tensor.dim() == rank and tensor.shape[-1] == width, name, f"shape (N, {width})", shape(tensor))
    require(bias.shape == (*branches, width), "bias", f"shape {(*branches, width)}", shape(bias))
    require(out_weight.shape == (1, width), "out_weight", f"shape (1, {width})", shape(out_weight))
    require(out_bias.shape == (1,), "out_bias", "shape (1,)", shape(out_bias))


def check_task(task: Tensor, rows: Sequence[int], branches: int, device: torch.device) -> Tensor:
    """The task of each of ``rows`` on their device, shaped as they are.

    A device's tensor is not read from the host: there a number below 0 or above the last branch counts as the nearest.

    Raises:
        ArgumentError: unless ``task`` holds integers, broadcasts to ``rows`` and, on the CPU, names branches.
    """
    require(not task.is_floating_point() and task.dtype != torch.bool, "task", "an integer tensor", task.dtype)
    try:
        task = task.expand(rows)
    except RuntimeError:
        require(False, "task", f"a shape that broadcasts to {tuple(rows)}", shape(task))
    # Reading values would break a compiled graph.
    if task.device.type == "cpu" and not torch.compiler.is_compiling() and task.numel():
        low, high = (int(bound) for bound in task.aminmax())
        require(low >= 0 and high < branches, "task", f"values in 0..{branches - 1}", f"{low}..{high}")
    return task.to(device)


def iem_scores(
    a: Tensor,
    b: Tensor,
    weight: Tensor,
    bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    backend: str = "auto",
    task: Tensor | None = None,
) -> Tensor:
    """Score of every query with every passage by the branch of its task (docs/algebra.md, section 2).

    Args:
        a: (Nq, F) projected queries, linear1's bias included. b: (Np, F) projected passages.
        weight, bias: (F, F) and (F,) of the task's projection, or with ``task`` those of all tasks, (T, F, F) and
            (T, F). out_weight, out_bias: (1, F) and (1,).
        backend: one of ``backends.NAMES``.
        task: (Nq,) integers, the branch of each query. One that lies on a GPU is not read from the host, so that
            nothing waits for it: there a number outside 0..T-1 counts as the nearest of them.

    Returns:
        (Nq, Np), float32 (float64 for float64) whatever the input dtype, so that half precision makes no ties.

    Raises:
        ArgumentError: on shapes or dtypes that do not fit, or a task on the CPU that has no branch.
        BackendError: if a backend named explicitly is missing or takes no such tensors.
    """
    check_interaction(a, b, weight, bias, out_weight, out_bias, rank=2, stacked=task is not None)
    branch, task = _branch(Branch(weight, bias, out_weight, out_bias), task, a.shape[:1], a.device)
    a, b, *weights = autocast(a, b, *branch)
    chosen = backends.select("iem_scores", backend, a.device, promotion(a, b, *weights))
    if formulas := backends.formulas(chosen):
        return formulas.iem_scores(a, b, Branch(*weights), task)
    return iem_scores_operator(a, b, *weights, task, chosen)


def iem_pairs(
    a: Tensor,
    b: Tensor,
    weight: Tensor,
    bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    return_features: bool = False,
    backend: str = "auto",
    task: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Scores of given pairs by the branches of their tasks (docs/algebra.md, section 2).

    Args:
        a, b: (..., F), broadcast against each other; the rest as in ``iem_scores``.
        return_features: also return the pair features x_t.
        task: integers that broadcast to (...), the branch of each pair; else as in ``iem_scores``.

    Returns:
        z (...) in float32 (float64 for float64); with ``return_features`` also the features (..., F) in the
        promoted input dtype.

    Raises:
        ArgumentError: on shapes or dtypes that do not fit, or a task on the CPU that has no branch.
        BackendError: if a backend named explicitly is missing or takes no such tensors.
    """
    check_interaction(a, b, weight, bias, out_weight, out_bias, rank=None, stacked=task is not None)
    try:
        a, b = torch.broadcast_tensors(a, b)
    except RuntimeError:
        require(False, "b", f"a shape that broadcasts with a's, {shape(a)}", shape(b))
    pairs, width = a.shape[:-1], a.shape[-1]
    branch, task = _branch(Branch(weight, bias, out_weight, out_bias), task, pairs, a.device)
    a, b, *weights = autocast(a, b, *branch)
    chosen = backends.select("iem_pairs", backend, a.device, promotion(a, b, *weights))
    a, b, task = a.reshape(-1, width), b.reshape(-1, width), None if task is None else task.reshape(-1)
    if formulas := backends.formulas(chosen):
        z, features = formulas.iem_pairs(a, b, Branch(*weights), task, return_features)
    else:
        z, features = iem_pairs_operator(a, b, *weights, task, return_features, chosen)
    return (z.view(pairs), features.view(*pairs, width)) if return_features else z.view(pairs)


def iem_topk(
    a: Tensor,
    b: Tensor,
    weight: Tensor,
    bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    k: int,
    backend: str = "auto",
    task: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The k best passages of each query, exact and streaming: (Nq, Np) is never held.

    Args:
        a, b, weight, bias, out_weight, out_bias, backend, task: as in ``iem_scores``.
        k: how many, between 1 and Np.

    Returns:
        values (Nq, k), float32 or float64, and indices (Nq, k) int64, best first, the lower index first among
        equals. A score that is NaN counts, and is returned, as -inf. Not differentiable.

    Raises:
        ArgumentError: on shapes or dtypes that do not fit, k outside 1..Np, or a task on the CPU that has no branch.
        BackendError: if a backend named explicitly is missing or takes no such tensors.
    """
    check_interaction(a, b, weight, bias, out_weight, out_bias, rank=2, stacked=task is not None)
    whole = isinstance(k, (int, torch.SymInt)) and not isinstance(k, bool)
    require(whole and 0 < k <= b.shape[0], "k", f"between 1 and the number of passages, {b.shape[0]}", k)
    branch, task = _branch(Branch(weight, bias, out_weight, out_bias), task, a.shape[:1], a.device)
    a, b, *weights = (tensor.detach() for tensor in autocast(a, b, *branch))
    chosen = backends.select("iem_topk", backend, a.device, promotion(a, b, *weights))
    if formulas := backends.formulas(chosen):
        return formulas.iem_topk(a, b, Branch(*weights), task, k)
    return iem_topk_operator(a, b, *weights, task, k, chosen)


def _branch(
    branch: Branch, task: Tensor | None, rows: torch.Size, device: torch.device
) -> tuple[Branch, Tensor | None]:
    """The branches and the task of each row; where there is but one branch, that one and None."""
    if task is None:
        return branch, None
    task = check_task(task, rows, len(branch.weight), device)
    return (branch.of(0), None) if len(branch.weight) == 1 else (branch, task)


@torch.library.custom_op("d2llm::iem_scores", mutates_args=())
def iem_scores_operator(
    a: Tensor,
    b: Tensor,
    weight: Tensor,
    bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    task: Tensor | None,
    backend: str,
) -> Tensor:
    """The work of ``iem_scores`` by a backend chosen beforehand."""
    return backends.named(backend).interaction().iem_scores(a, b, Branch(weight, bias, out_weight, out_bias), task)


@iem_scores_operator.register_fake
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
) -> _Six:
    """Gradients of ``iem_scores`` for its six tensors; ``wanted`` says whether for a and b, and for the weights."""
    branch = Branch(weight, bias, out_weight, out_bias)
    return cast(_Six, backends.named(backend).interaction().iem_scores_backward(dz, a, b, branch, task, wanted))


@iem_scores_backward.register_fake
def _(dz: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    return empty_gradients(inputs[:6], _each(inputs[-1]))


def _wanted(ctx: Any) -> list[bool]:
    needed = ctx.needs_input_grad
    return [any(needed[:2]), any(needed[2:6])]


def _each(wanted: Sequence[bool]) -> list[bool]:
    """Whether the gradient of each of the six tensors is made."""
    return [wanted[0]] * 2 + [wanted[1]] * 4


def _save_scores(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:7])
    ctx.backend = inputs[7]


def _differentiate_scores(ctx: Any, dz: Tensor) -> tuple[Any, ...]:
    gradients = iem_scores_backward(dz, *ctx.saved_tensors, ctx.backend, _wanted(ctx))
    return *given_gradients(gradients, ctx.needs_input_grad[:6]), None, None


iem_scores_operator.register_autograd(_differentiate_scores, setup_context=_save_scores)


@torch.library.custom_op("d2llm::iem_pairs", mutates_args=())
def iem_pairs_operator(
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
    """The work of ``iem_pairs``, on rows, by a backend chosen beforehand."""
    branch = Branch(weight, bias, out_weight, out_bias)
    return backends.named(backend).interaction().iem_pairs(a, b, branch, task, return_features)


@iem_pairs_operator.register_fake
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
    dtype = promotion(a, b, weight)
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
) -> _Six:
    """Gradients of ``iem_pairs`` for its six tensors; ``wanted`` as in ``iem_scores_backward``."""
    branch = Branch(weight, bias, out_weight, out_bias)
    kernels = backends.named(backend).interaction()
    return cast(_Six, kernels.iem_pairs_backward(dz, dfeatures, a, b, branch, task, wanted))


@iem_pairs_backward.register_fake
def _(dz: Tensor, dfeatures: Tensor | None, *inputs: Any) -> tuple[Tensor, ...]:
    return empty_gradients(inputs[:6], _each(inputs[-1]))


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
    return *given_gradients(gradients, ctx.needs_input_grad[:6]), None, None, None


iem_pairs_operator.register_autograd(_differentiate_pairs, setup_context=_save_pairs)


@torch.library.custom_op("d2llm::iem_topk", mutates_args=())
def iem_topk_operator(
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
    """The work of ``iem_topk`` by a backend chosen beforehand; not differentiable."""
    return backends.named(backend).interaction().iem_topk(a, b, Branch(weight, bias, out_weight, out_bias), task, k)


@iem_topk_operator.register_fake
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
