"""Interaction scores on the CUDA kernels: workspaces and launches; what the kernels do is told beside them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from d2llm_kernels.backends.cuda.library import module, operators
from d2llm_kernels.backends.gpu.interaction import PROGRAMS, Pairs, pairs_backward, scores_backward
from d2llm_kernels.backends.gpu.topk import topk
from d2llm_kernels.branch import Branch
from d2llm_kernels.tensors import cast_like, promoted


def iem_scores(a: Tensor, b: Tensor, branch: Branch) -> Tensor:
    """Forward of ``functional.iem_scores``: (Nq, F), (Np, F) -> (Nq, Np)."""
    z = a.new_empty(a.shape[0], b.shape[0], dtype=torch.float32)
    operators().scores(*_ready(a, b, branch), z, None, False, 0)
    return z


def iem_pairs(a: Tensor, b: Tensor, branch: Branch, return_features: bool) -> tuple[Tensor, Tensor]:
    """Forward of ``functional.iem_pairs`` on rows: (N, F), (N, F) -> z (N,), features (N, F) or (0, F)."""
    inputs = _ready(a, b, branch)
    z = a.new_empty(a.shape[0], dtype=torch.float32)
    features = torch.empty_like(inputs[1], memory_format=torch.contiguous_format) if return_features else None
    operators().scores(*inputs, z, features, True, 0)
    return z, inputs[0].new_empty(0, a.shape[1]) if features is None else features


def iem_topk(a: Tensor, b: Tensor, branch: Branch, k: int) -> tuple[Tensor, Tensor]:
    """Forward of ``functional.iem_topk``."""
    queries, passages, *weights = _ready(a, b, branch)

    def score(part: Tensor, keys: Tensor, first: int) -> None:
        operators().scores(queries, part, *weights, keys, None, False, first)

    return topk(queries, passages, k, score)


def iem_scores_backward(dz: Tensor, a: Tensor, b: Tensor, branch: Branch, wanted: Sequence[bool]) -> tuple[Tensor, ...]:
    """Gradients of ``iem_scores`` with respect to a, b and the four tensors of the branch, in that order."""
    left, right, *weights = _ready(a, b, branch)
    dz = dz.float()
    dz = dz if dz.stride(-1) == 1 else dz.contiguous()
    gradients = scores_backward(_Kernels(Branch(*weights)), dz, left, right, Branch(*weights), wanted)
    return cast_like(gradients, (a, b, *branch))


def iem_pairs_backward(
    dz: Tensor, dfeatures: Tensor | None, a: Tensor, b: Tensor, branch: Branch, wanted: Sequence[bool]
) -> tuple[Tensor, ...]:
    """Gradients of ``iem_pairs`` with respect to a, b and the four tensors of the branch, in that order."""
    left, right, *weights = _ready(a, b, branch)
    dfeatures = None if dfeatures is None else dfeatures.to(left.dtype)
    gradients = pairs_backward(_Kernels(Branch(*weights)), dz.float(), dfeatures, left, right, Branch(*weights), wanted)
    return cast_like(gradients, (a, b, *branch))


def _ready(a: Tensor, b: Tensor, branch: Branch) -> tuple[Tensor, ...]:
    """One dtype, rows contiguous."""
    rows = (t if t.stride(-1) == 1 else t.contiguous() for t in promoted(a, b, *branch))
    left, right, weight, *vectors = rows
    return left, right, weight, *(vector.contiguous() for vector in vectors)


class _Kernels:
    """The kernels of the backward with the weights of one call (``gpu.interaction.Kernels``).

    They write what the protocol adds: sums of several chunks are added here.
    """

    def __init__(self, branch: Branch) -> None:
        self.branch = branch
        self.transposed = branch.weight.t().contiguous()

    def slopes(self, pairs: Pairs, dz: Tensor, dfeatures: Tensor | None, sums: Tensor | None) -> tuple[Tensor, Tensor]:
        a, b, given, _ = pairs
        dpre = a.new_empty(pairs.size(), a.shape[1])
        parts = operators().slopes(a, b, *self.branch, dz, dfeatures, dpre, given)
        # How many parts there are depends on the chunk.
        part = parts.sum(1)[None]
        return dpre, part if sums is None else sums.add_(part)

    def weights(self, pairs: Pairs, dpre: Tensor, dweight: Tensor | None) -> Tensor:
        if dweight is None:
            parts = max(1, PROGRAMS // module().weights_blocks(self.branch.weight.shape[0]))
            dweight = dpre.new_zeros(parts, *self.branch.weight.shape, dtype=torch.float32)
        operators().weights(pairs.a, pairs.b, dpre, dweight, pairs.given)
        return dweight

    def inputs(self, pairs: Pairs, dpre: Tensor, db: Tensor | None) -> tuple[Tensor | None, Tensor]:
        da, some = operators().inputs(pairs.a, pairs.b, self.transposed, dpre, PROGRAMS, pairs.given)
        if db is None:
            return None if pairs.given else da, some
        db[: some.shape[0]].add_(some)
        return None if pairs.given else da, db
