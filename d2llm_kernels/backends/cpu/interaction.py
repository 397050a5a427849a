"""Interaction scores on the C++ kernels, in int8 too."""

from collections.abc import Sequence

from torch import Tensor

from d2llm_kernels.backends.cpu.library import operators
from d2llm_kernels.branch import Branch
from d2llm_kernels.tensors import cast_like, promoted, promotion, unwanted


def iem_scores(a: Tensor, b: Tensor, branch: Branch) -> Tensor:
    """Forward of ``functional.iem_scores``."""
    return operators().iem_scores(*promoted(a, b, *branch))


def iem_scores_backward(dz: Tensor, a: Tensor, b: Tensor, branch: Branch, wanted: Sequence[bool]) -> tuple[Tensor, ...]:
    """Gradients of ``iem_scores`` for its six tensors; all are made, whatever is wanted."""
    return _wanted(operators().iem_scores_backward(dz, *promoted(a, b, *branch)), (a, b, *branch), wanted)


def iem_pairs(a: Tensor, b: Tensor, branch: Branch, return_features: bool) -> tuple[Tensor, Tensor]:
    """Forward of ``functional.iem_pairs`` on rows."""
    z, features = operators().iem_pairs(*promoted(a, b, *branch), return_features)
    return z, features.to(promotion(a, b, branch.weight))


def iem_pairs_backward(
    dz: Tensor, dfeatures: Tensor | None, a: Tensor, b: Tensor, branch: Branch, wanted: Sequence[bool]
) -> tuple[Tensor, ...]:
    """Gradients of ``iem_pairs`` for its six tensors; all are made, whatever is wanted."""
    return _wanted(operators().iem_pairs_backward(dz, dfeatures, *promoted(a, b, *branch)), (a, b, *branch), wanted)


def iem_topk(a: Tensor, b: Tensor, branch: Branch, k: int) -> tuple[Tensor, Tensor]:
    """Forward of ``functional.iem_topk``: O(k) memory for each query."""
    return operators().iem_topk(*promoted(a, b, *branch), k)


def iem_scores_int8(a: Tensor, b: Tensor, scale: Tensor, branch: Branch) -> Tensor:
    """``int8.iem_scores``; all but b float32."""
    return operators().iem_scores_int8(a, b, scale, *branch)


def pack_linear_int8(weight: Tensor) -> Tensor:
    """A weight (M, K) int8 in units of the instruction set."""
    return operators().pack_linear_int8(weight)


def linear_int8(x: Tensor, packed: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """``rough.linear`` on rows: x (N, K) float32 to (N, M)."""
    return operators().linear_int8(x, packed, scale, bias)


def inner_topk(queries: Tensor, chunks: Sequence[Tensor], kept: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    """``inner.topk``: one pass over the rows."""
    return operators().inner_topk(queries, chunks, kept, k)


def take_rows(chunks: Sequence[Tensor], numbers: Tensor) -> Tensor:
    """Rows of chunks that count on from one to the next."""
    return operators().take_rows(chunks, numbers)


def _wanted(gradients: Sequence[Tensor], inputs: Sequence[Tensor], wanted: Sequence[bool]) -> tuple[Tensor, ...]:
    """Gradients of a and b and of a branch, those that are wanted, in the dtypes of the inputs."""
    found: tuple[Tensor, ...] = ()
    for given, part in zip(wanted, (slice(2), slice(2, None)), strict=True):
        found += cast_like(gradients[part], inputs[part]) if given else unwanted(*inputs[part])
    return found
