"""Scores and top-k against passages stored in int8: half the memory of bfloat16, a quarter of float32.

A row of projected passages b is kept as F whole numbers and one float32 scale. The C++ kernels multiply bytes: there
the hidden layer of each pair and each row of the branch's weight are rounded to 8 bits too, which is too coarse to
rank by, so that top-k scores its candidates again in float32. Other backends widen the passages block by block.
Nothing here is differentiable. The error contract is in ``tests/kernels/test_int8.py``, the method in
``docs/kernels/cpu.md``.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from d2llm_kernels import functional, reference
from d2llm_kernels.backends import select
from d2llm_kernels.backends.cpu import interaction as cpu
from d2llm_kernels.branch import Branch
from d2llm_kernels.errors import require, shape
from d2llm_kernels.operators.interaction import check_interaction

# Passages widened at a time where there are no kernels for bytes: 32 MB in float32 at F = 512.
_BLOCK = 16384


def quantize(b: Tensor) -> tuple[Tensor, Tensor]:
    """Round rows to int8, each with the scale that takes its largest value to 127.

    Scores depend on a + b alone. To take a vector c from every row of b and add it to every row of a leaves them as
    they are; with c the mean of b's rows the error halves (``d2llm.Index`` does so).

    Args:
        b: (Np, F), finite, any floating dtype.

    Returns:
        values (Np, F) int8 and scale (Np,) float32; ``values * scale[:, None]`` is within half a scale of ``b``.

    Raises:
        ArgumentError: on a wrong shape or dtype, NaN or infinity.
    """
    require(b.dim() == 2 and b.is_floating_point(), "b", "a floating point tensor of shape (Np, F)", shape(b))
    wide = b.detach().float()
    scale = wide.abs().amax(1) / 127 if b.shape[1] else wide.new_zeros(b.shape[0])
    # The largest of a row is NaN or infinite where any of it is.
    require(bool(scale.isfinite().all()), "b", "values that are finite in float32", "NaN or infinity")
    # A row of zeros, or of values so small that their scale is 0, becomes zeros.
    values = torch.round(wide / scale.where(scale > 0, 1)[:, None])
    return values.clamp(-127, 127).to(torch.int8), scale


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
    chosen = select("iem_scores", backend, b.device, torch.float32)
    if chosen == "cpu":
        return cpu.iem_scores_int8(queries, b, scale, branch)
    parts = [functional.iem_scores(queries, block, *branch, chosen) for block in _widened(b, scale)]
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
    passages = b.shape[0]
    require(0 < k <= passages, "k", f"between 1 and the number of passages, {passages}", k)
    chosen = select("iem_topk", backend, b.device, torch.float32)
    if chosen == "cpu":
        return cpu.iem_topk_int8(queries, b, scale, branch, k, candidates(k, passages))
    values, indices = queries.new_empty(a.shape[0], 0), torch.empty(a.shape[0], 0, dtype=torch.int64, device=b.device)
    for number, block in enumerate(_widened(b, scale)):
        best, rows = functional.iem_topk(queries, block, *branch, min(k, block.shape[0]), chosen)
        # Kept ones come first and have the lower indices, so that ties keep their order.
        values, order = reference.topk(torch.cat([values, best], 1), min(k, values.shape[1] + best.shape[1]))
        indices = torch.cat([indices, rows + number * _BLOCK], 1).gather(1, order)
    return values, indices


def candidates(k: int, passages: int) -> int:
    """How many passages to keep by rough scores so that the best k by exact ones are among them.

    Of trained scores 2 k in 8 bits held the best 100 of each query; the rest is margin.
    """
    return min(max(4 * k, k + 128), passages)


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


def _widened(b: Tensor, scale: Tensor) -> Iterator[Tensor]:
    for start in range(0, len(b), _BLOCK):
        yield b[start : start + _BLOCK].float() * scale[start : start + _BLOCK, None]
