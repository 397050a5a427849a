"""Scores with the square layer in 8-bit floating point (e4m3): twice the rate of half precision on matrix units.

Each row of the branch's weight is kept as e4m3 numbers and a scale; the hidden values of each pair are scaled by a
power of two, which rounds nothing, so that their largest is near 448, the largest e4m3 number: nothing saturates. Both
are then rounded to 4 significant bits, too coarse to return, so that top-k scores its candidates again at full
precision. The error contract is in ``tests/kernels/test_fp8.py``. The CUDA kernel is for compute capability 9.0 and
experimental (docs/kernels/cuda.md); elsewhere the same formula runs in plain torch, which shows its error and saves no
time. Nothing here is differentiable.
"""

import torch
from torch import Tensor

from d2llm_kernels import reference
from d2llm_kernels.backends import select
from d2llm_kernels.backends.cuda import library
from d2llm_kernels.backends.gpu import topk
from d2llm_kernels.branch import Branch
from d2llm_kernels.errors import require, shape
from d2llm_kernels.operators.interaction import check_interaction
from d2llm_kernels.rough.candidates import candidates, rerank

#: The largest e4m3 number.
LARGEST = 448.0
# Elements of hidden values at a time in plain torch.
_BLOCK = 1 << 24


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round the rows of a weight to e4m3, each with the scale that takes its largest value to 448.

    Args:
        weight: (F, F), finite, any floating dtype. On a GPU that is not looked at, so that nothing waits for it: a row
            with NaN or infinity then gets a scale that is neither finite nor lets any score be a number.

    Returns:
        values (F, F) float8_e4m3fn and scale (F,) float32; ``values * scale[:, None]`` is within 1/16 of each value, or
        within 2⁻¹⁰ of the scale.

    Raises:
        ArgumentError: on a wrong shape or dtype, NaN or infinity on the CPU.
    """
    require(weight.dim() == 2 and weight.is_floating_point(), "weight", "a floating point (F, F)", shape(weight))
    wide = weight.detach().float()
    scale = wide.abs().amax(1) / LARGEST if weight.shape[1] else wide.new_zeros(weight.shape[0])
    if weight.device.type == "cpu":
        require(bool(scale.isfinite().all()), "weight", "values that are finite in float32", "NaN or infinity")
    return (wide / scale.where(scale > 0, 1)[:, None]).to(torch.float8_e4m3fn), scale


def iem_scores(
    a: Tensor,
    b: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    backend: str = "auto",
) -> Tensor:
    """``functional.iem_scores`` with hidden values and weight in e4m3, for ranking roughly.

    Args:
        a, b: (Nq, F) and (Np, F), any floating dtype; taken in bfloat16.
        weight, scale: (F, F) float8_e4m3fn and (F,) float32 from ``quantize``.
        bias, out_weight, out_bias, backend: as in ``functional.iem_scores``.

    Returns:
        (Nq, Np) float32. A pair whose hidden values are not finite scores NaN.

    Raises:
        ArgumentError: on shapes or dtypes that do not fit.
        BackendError: if a backend named explicitly is missing.
    """
    queries, passages, branch = _check(a, b, weight, scale, bias, out_weight, out_bias)
    if _on_kernel(backend, queries, passages, branch.weight, scale):
        z = queries.new_empty(a.shape[0], b.shape[0], dtype=torch.float32)
        library.operators().scores_fp8(queries, passages, branch.weight, scale, *branch[1:], z, 0)
        return z
    return _scores(queries, passages, branch, scale)


def iem_topk(
    a: Tensor,
    b: Tensor,
    branch: tuple[Tensor, Tensor, Tensor, Tensor],
    k: int,
    backend: str = "auto",
    quantized: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """``functional.iem_topk`` that looks for candidates in e4m3 and ranks them as ``functional.iem_pairs`` scores them.

    Args:
        a, b, k, backend: as in ``functional.iem_topk``. branch: weight, bias, out_weight and out_bias, unrounded.
        quantized: what ``quantize`` gives for that weight, where it is searched with more than once; else it is
            rounded here.

    Returns:
        values (Nq, k) float32 and indices (Nq, k) int64, best first, the lower index first among equals. A passage is
        missed only if max(4 k, k + 128) others look better in e4m3. NaN counts, and is returned, as -inf.

    Raises:
        ArgumentError: on shapes or dtypes that do not fit, or k outside 1..Np.
        BackendError: if a backend named explicitly is missing.
    """
    require(0 < k <= b.shape[0], "k", f"between 1 and the number of passages, {b.shape[0]}", k)
    weight, scale = quantize(branch[0]) if quantized is None else quantized
    queries, passages, rough = _check(a, b, weight, scale, *branch[1:])
    most = min(candidates(k), b.shape[0])
    if _on_kernel(backend, queries, passages, rough.weight, scale):

        def score(part: Tensor, keys: Tensor, first: int) -> None:
            library.operators().scores_fp8(queries, part, rough.weight, scale, *rough[1:], keys, first)

        _, found = topk.topk(queries, passages, most, score)
    else:
        _, found = reference.topk(_scores(queries, passages, rough, scale), most)
    return rerank(a, Branch(*branch), found, lambda indices: b[indices], k, backend)


def _check(a: Tensor, b: Tensor, weight: Tensor, scale: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor, Branch]:
    """Queries and passages in bfloat16, and the branch with its weight in e4m3, all detached."""
    bias, out_weight, out_bias = rest
    require(weight.dtype == torch.float8_e4m3fn, "weight", "float8_e4m3fn", weight.dtype)
    check_interaction(a, b, weight.to("meta").float(), bias, out_weight, out_bias, rank=2)
    require(scale.dtype == torch.float32, "scale", "float32", scale.dtype)
    require(scale.shape == weight.shape[:1], "scale", f"shape {shape(weight)[:1]}", shape(scale))
    for name, tensor in (("a", a), ("weight", weight), ("scale", scale)):
        require(tensor.device == b.device, name, f"device {b.device}", tensor.device)
    queries, passages, *vectors = (t.detach().bfloat16().contiguous() for t in (a, b, *rest))
    return queries, passages, Branch(weight.contiguous(), *vectors)


def _on_kernel(backend: str, queries: Tensor, passages: Tensor, weight: Tensor, scale: Tensor) -> bool:
    chosen = select("iem_scores", backend, queries.device, torch.bfloat16)
    if chosen not in ("cuda", "triton") or library.missing() is not None:
        return False
    return bool(library.operators().takes_fp8(queries, passages, weight, scale))


def _scores(queries: Tensor, passages: Tensor, branch: Branch, scale: Tensor) -> Tensor:
    """The formula in plain torch, with sums in float32."""
    count, width = passages.shape
    weight = branch.weight.float() * scale[:, None]
    bias, out_weight, out_bias = (vector.float() for vector in branch[1:])
    z = queries.new_empty(queries.shape[0], count, dtype=torch.float32)
    step = max(1, _BLOCK // max(1, width))
    for i, query in enumerate(queries):
        for start in range(0, count, step):
            hidden = torch.relu(query + passages[start : start + step]).float()
            largest = hidden.amax(1, keepdim=True) if width else hidden.new_zeros(hidden.shape[0], 1)
            # The power of two that takes the largest value to at most 448.
            factor = torch.exp2(torch.floor(torch.log2(LARGEST / largest.clamp_min(2.0**-110))))
            rounded = (hidden * factor).to(torch.float8_e4m3fn).float() / factor
            pre = torch.relu(torch.addmm(bias, rounded, weight.T))
            some = pre @ out_weight.view(-1) + out_bias
            z[i, start : start + step] = some.where(largest[:, 0].isfinite(), torch.nan)
    return z
