"""Scores and top-k against passages stored in int8: half the memory of bfloat16, a quarter of float32.

A row of projected passages b is kept as F whole numbers and one float32 scale. The C++ kernels multiply bytes: there
the hidden layer of each pair and each row of the branch's weight are rounded to 8 bits too, which is too coarse to
rank by, so that top-k scores its candidates again in float32. Other backends widen the passages block by block.
Nothing here is differentiable. The error contract is in ``tests/kernels/test_int8.py``, the method in
``docs/kernels/cpu.md``.
"""

import torch
from torch import Tensor

from d2llm_kernels import backends, functional
from d2llm_kernels.branch import Branch
from d2llm_kernels.errors import require, shape
from d2llm_kernels.operators.interaction import check_interaction
from d2llm_kernels.rough.rows import Int8Rows, quantize
from d2llm_kernels.rough.search import Search

__all__ = ["Int8Rows", "iem_scores", "iem_topk", "quantize"]

# Passages widened at a time where there are no kernels for bytes: 32 MB in float32 at F = 512.
_BLOCK = 16384


def iem_scores(
    a: Tensor,
    b: Tensor,
    scale: Tensor,
    weight: Tensor,
    bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    backend: str = "auto",
) -> Tensor:
    """``functional.iem_scores`` for passages in int8.

    Args:
        a: (Nq, F) projected queries. b, scale: (Np, F) int8 and (Np,) float32 from ``quantize``.
        weight, bias, out_weight, out_bias, backend: as in ``functional.iem_scores``.

    Returns:
        (Nq, Np) float32. Backend "cpu" adds the rounding of hidden layers and weight to 8 bits, the same on every
        machine; a query with NaN or infinity has scores of NaN.

    Raises:
        ArgumentError: on shapes or dtypes that do not fit.
        BackendError: if a backend named explicitly is missing.
    """
    queries, branch = _check(a, b, scale, weight, bias, out_weight, out_bias)
    chosen = backends.select("iem_scores", backend, b.device, torch.float32)
    if kernels := backends.named(chosen).int8():
        return kernels.iem_scores_int8(queries, b, scale, branch)
    blocks = (slice(start, start + _BLOCK) for start in range(0, len(b), _BLOCK))
    rows = (b[block].float() * scale[block, None] for block in blocks)
    parts = [functional.iem_scores(queries, some, *branch, chosen) for some in rows]
    return torch.cat(parts, 1) if parts else queries.new_empty(a.shape[0], 0)


def iem_topk(
    a: Tensor,
    b: Tensor,
    scale: Tensor,
    weight: Tensor,
    bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    k: int,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """``functional.iem_topk`` for passages in int8, streaming as it is.

    Backend "cpu" scores all passages in 8 bits, keeps max(4 k, k + 128) candidates of each query and returns the best k
    of those by their scores in float32. A passage is missed only if that many others look better in 8 bits.

    Args:
        a, b, scale, weight, bias, out_weight, out_bias, backend: as in ``iem_scores``. k: between 1 and Np.

    Returns:
        values (Nq, k) float32, what ``functional.iem_scores`` gives for ``b * scale[:, None]``, and indices (Nq, k)
        int64, best first, the lower index first among equals. NaN counts, and is returned, as -inf.

    Raises:
        ArgumentError: on shapes or dtypes that do not fit, or k outside 1..Np.
        BackendError: if a backend named explicitly is missing.
    """
    queries, branch = _check(a, b, scale, weight, bias, out_weight, out_bias)
    require(0 < k <= len(b), "k", f"between 1 and the number of passages, {len(b)}", k)
    return Search(branch, torch.int8, backend).topk(queries, [Int8Rows(b, scale, queries.new_zeros(b.shape[1]))], k)


def _check(a: Tensor, b: Tensor, scale: Tensor, *layers: Tensor) -> tuple[Tensor, Branch]:
    """The queries and the branch, detached and in float32."""
    require(b.dtype == torch.int8, "b", "int8", b.dtype)
    weight, bias, out_weight, out_bias = layers
    check_interaction(a, b.to("meta").float(), weight, bias, out_weight, out_bias, rank=2)
    require(scale.dtype == torch.float32, "scale", "float32", scale.dtype)
    require(scale.shape == b.shape[:1], "scale", f"shape {shape(b)[:1]}", shape(scale))
    for name, tensor in (("a", a), ("scale", scale), ("weight", weight)):
        require(tensor.device == b.device, name, f"device {b.device}", tensor.device)
    queries, *branch = (tensor.detach().float() for tensor in (a, *layers))
    return queries, Branch(*branch)
