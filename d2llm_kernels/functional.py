"""The kernels as functions: arguments are checked, the backend is chosen, one operator does the work."""

import torch
import torch.nn.functional as F
from torch import Tensor

from d2llm_kernels import ops, reference
from d2llm_kernels.backends import admits, select
from d2llm_kernels.checks import (
    accumulate_dtype,
    check_in_batch,
    check_interaction,
    check_tokens,
    require,
    shape,
)
from d2llm_kernels.iem_folded import Branch
from d2llm_kernels.tasks import PerTask, check_task

#: Rows that a linear layer must have for the C++ kernels: they keep one in each lane, and fewer leave lanes idle.
LINEAR_ROWS = 16


def attn_pool(
    x: Tensor,
    u: Tensor,
    mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Softmax-weighted sums of a sequence's tokens, one for each head (docs/algebra.md, section 1).

    Args:
        x: hidden states, (B, L, D) padded or, with ``cu_seqlens``, (T, D) packed; any floating dtype.
        u: (H, D) one folded query per head, the scale included.
        mask: (B, L) bool or int, nonzero for a valid token, or None; holes are allowed.
        cu_seqlens: (B + 1,) int32 or int64 offsets from 0 to T; equal neighbours are empty sequences. Offsets on a GPU
            cost no synchronisation, and are not checked by the kernels there. Offsets on the host are checked and, for
            x on a GPU, copied without waiting in every call; a CUDA graph wants them on the GPU.
        backend: one of ``backends.NAMES``.

    Returns:
        pooled (B, H, D) in the promoted dtype of x and u, and lse (B, H), the logarithm of the softmax
        denominator, in float32 (float64 for float64). Without a valid token pooled is 0 and lse -inf.
        Masked tokens are never read and get a zero gradient.

    Raises:
        ArgumentError: on shapes, dtypes, devices or offsets that do not fit.
        BackendError: if a backend named explicitly is missing.
    """
    require(u.dim() == 2 and u.is_floating_point(), "u", "a floating point tensor of shape (H, D)", shape(u))
    check_tokens(x, u.shape[1], mask, cu_seqlens)
    require(u.device == x.device, "u", f"device {x.device}", u.device)
    x, u = _autocast(x, u)
    dtype = torch.promote_types(x.dtype, u.dtype)
    chosen = select(backend, x.device, dtype)
    if chosen == "reference":
        pooled, lse = reference.attn_pool(x.to(dtype), u.to(dtype), mask, cu_seqlens)
        return pooled, lse.to(accumulate_dtype(dtype))
    return ops.attn_pool(x, u, mask, cu_seqlens, chosen)


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
        BackendError: if a backend named explicitly is missing.
    """
    check_interaction(a, b, weight, bias, out_weight, out_bias, rank=2, stacked=task is not None)
    weight, bias, task = _branches(weight, bias, task, a.shape[:1], a.device)
    tensors = _autocast(a, b, weight, bias, out_weight, out_bias)
    chosen = select(backend, a.device, _widest(*tensors))
    if chosen == "reference":
        scores = _literal_scores(tensors, task)
        return scores.to(accumulate_dtype(scores.dtype))
    return ops.iem_scores(*tensors, task, chosen)


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
        BackendError: if a backend named explicitly is missing.
    """
    check_interaction(a, b, weight, bias, out_weight, out_bias, rank=None, stacked=task is not None)
    try:
        a, b = torch.broadcast_tensors(a, b)
    except RuntimeError:
        require(False, "b", f"a shape that broadcasts with a's, {shape(a)}", shape(b))
    pairs, width = a.shape[:-1], a.shape[-1]
    weight, bias, task = _branches(weight, bias, task, pairs, a.device)
    tensors = _autocast(a, b, weight, bias, out_weight, out_bias)
    chosen = select(backend, a.device, _widest(*tensors))
    rows = (tensors[0].reshape(-1, width), tensors[1].reshape(-1, width), *tensors[2:])
    task = None if task is None else task.reshape(-1)
    if chosen == "reference":
        a, b, *branch = _promote(*rows)
        z, features = PerTask(_Literal).iem_pairs(a, b, Branch(*branch), task, return_features)
        z = z.to(accumulate_dtype(z.dtype))
    else:
        z, features = ops.iem_pairs(*rows, task, return_features, chosen)
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
        BackendError: if a backend named explicitly is missing.
    """
    check_interaction(a, b, weight, bias, out_weight, out_bias, rank=2, stacked=task is not None)
    require(0 < k <= b.shape[0], "k", f"between 1 and the number of passages, {b.shape[0]}", k)
    weight, bias, task = _branches(weight, bias, task, a.shape[:1], a.device)
    tensors = tuple(tensor.detach() for tensor in _autocast(a, b, weight, bias, out_weight, out_bias))
    chosen = select(backend, a.device, _widest(*tensors))
    if chosen == "reference":
        scores = _literal_scores(tensors, task)
        return reference.topk(scores.to(accumulate_dtype(scores.dtype)), k)
    return ops.iem_topk(*tensors, task, k, chosen)


class _Literal:
    """The literal formulas, called as a backend is."""

    @staticmethod
    def iem_scores(a: Tensor, b: Tensor, branch: Branch) -> Tensor:
        return reference.iem_scores(a, b, *branch)

    @staticmethod
    def iem_pairs(a: Tensor, b: Tensor, branch: Branch, return_features: bool) -> tuple[Tensor, Tensor]:
        return reference.iem_pairs(a, b, *branch)


def _literal_scores(tensors: tuple[Tensor, ...], task: Tensor | None) -> Tensor:
    a, b, *branch = _promote(*tensors)
    return PerTask(_Literal).iem_scores(a, b, Branch(*branch), task)


def _branches(
    weight: Tensor, bias: Tensor, task: Tensor | None, rows: torch.Size, device: torch.device
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The branches and the task of each row; where there is but one branch, that one and None."""
    if task is None:
        return weight, bias, None
    task = check_task(task, rows, weight.shape[0], device)
    return (weight[0], bias[0], None) if weight.shape[0] == 1 else (weight, bias, task)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, backend: str = "auto") -> Tensor:
    """A linear layer, or one for each group of rows: the projections of PMA and IEM.

    With the backend "cpu", chosen or picked by "auto", float32 rows go through the matrix product of the C++ kernels if
    there are enough of them; everything else is torch's own.

    Args:
        x: (..., K), or (G, N, K) with grouped weights.
        weight: (M, K) or (G, M, K), of the dtype of x. bias: (M,) or (G, M), or None.
        backend: one of ``backends.NAMES``.

    Returns:
        (..., M), or (G, N, M).

    Raises:
        ArgumentError: on shapes that do not fit.
    """
    grouped = weight.dim() == 3
    fits = weight.dim() in (2, 3) and x.shape[-1:] == weight.shape[-1:]
    fits = fits and (not grouped or (x.dim() == 3 and x.shape[0] == weight.shape[0]))
    require(fits, "x", f"rows for a weight of {shape(weight)}", shape(x))
    if bias is not None:
        require(bias.shape == weight.shape[:-1], "bias", f"shape {shape(weight)[:-1]}", shape(bias))
    if _native_linear(x, weight, backend):
        rows, weights = (x, weight) if grouped else (x.reshape(1, -1, x.shape[-1]), weight[None])
        y = ops.linear(rows, weights, bias if grouped or bias is None else bias[None])
        return y if grouped else y.view(*x.shape[:-1], -1)
    if not grouped:
        return F.linear(x, weight, bias)
    return torch.bmm(x, weight.mT) if bias is None else torch.baddbmm(bias[:, None], x, weight.mT)


def _native_linear(x: Tensor, weight: Tensor, backend: str) -> bool:
    """Whether the C++ kernels do a linear layer."""
    if not admits(backend, "cpu", x.device, x.dtype):
        return False
    rows = x.shape[1] if weight.dim() == 3 else x.shape[:-1].numel()
    return x.dtype == weight.dtype == torch.float32 and not _autocasts(x) and rows >= LINEAR_ROWS and x.shape[-1] > 0


def in_batch_terms(
    z_in_batch: Tensor,
    z_hard: Tensor | None = None,
    s_hard: Tensor | None = None,
    s_in_batch: Tensor | None = None,
    duplicates: Tensor | None = None,
    temperature: float = 1.0,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The two losses over all pairs of a batch, not yet averaged, in O(B²) memory (docs/algebra.md, section 6).

    Args:
        z_in_batch: (B, B) student logits of every query against every positive; any floating dtype.
        z_hard, s_hard: (B, K) student logits and teacher probabilities of the hard negatives, or None for none. One
            whose teacher probability is NaN takes no part; its logit is not read.
        s_in_batch: (B, B) teacher probabilities in the batch; None, or NaN at a pair, counts as 0.
        duplicates: (B, B) bool or int, nonzero at columns to leave out of a row. The diagonal always takes part in
            the cross-entropy and never in the pairs.
        temperature: of the cross-entropy.
        backend: one of ``backends.NAMES``.

    Returns:
        cross_entropy (B,), CE(z_i,: / temperature, i), and pairwise (B,),
        Σ_h Σ_{e≠i} max(0, s_ih − s_ie) · (−log σ(z_ih − z_ie)), in float32 (float64 if an input is), autocast or not.
        The teacher's probabilities are constants: they get no gradient.

    Raises:
        ArgumentError: on shapes, dtypes, devices or a temperature that do not fit.
        BackendError: if a backend named explicitly is missing.
    """
    check_in_batch(z_in_batch, z_hard, s_hard, s_in_batch, duplicates, temperature)
    if z_hard is None or s_hard is None:
        z_hard = s_hard = z_in_batch.new_empty(z_in_batch.shape[0], 0)
    teacher = (s_hard,) if s_in_batch is None else (s_hard, s_in_batch)
    dtype = _widest(z_in_batch, z_hard, *teacher)
    chosen = select(backend, z_in_batch.device, dtype)
    if chosen == "reference":
        wide = accumulate_dtype(dtype)
        s_in_batch = None if s_in_batch is None else s_in_batch.to(wide)
        scores = (z_in_batch.to(wide), z_hard.to(wide), s_hard.to(wide))
        return reference.in_batch_terms(*scores, s_in_batch, duplicates, temperature)
    return ops.in_batch_terms(z_in_batch, z_hard, s_hard, s_in_batch, duplicates, temperature, chosen)


def _autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in autocast's dtype where it is on; float64 is left alone, as autocast itself does."""
    if not _autocasts(tensors[0]):
        return tensors
    dtype = torch.get_autocast_dtype(tensors[0].device.type)
    return tuple(tensor if tensor.dtype == torch.float64 else tensor.to(dtype) for tensor in tensors)


def _autocasts(tensor: Tensor) -> bool:
    device = tensor.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def _promote(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in the widest dtype among them."""
    dtype = _widest(*tensors)
    return tuple(tensor.to(dtype) for tensor in tensors)


def _widest(*tensors: Tensor) -> torch.dtype:
    dtype = tensors[0].dtype
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype
