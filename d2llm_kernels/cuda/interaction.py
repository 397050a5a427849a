"""Interaction scores on the CUDA kernels: workspaces and launches; what the kernels do is told beside them."""

import torch
from torch import Tensor

from d2llm_kernels import gpu_interaction
from d2llm_kernels.cuda.library import module, operators
from d2llm_kernels.iem_folded import Branch
from d2llm_kernels.promotion import cast_like, promoted


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

    return gpu_interaction.topk(queries, passages, k, score)


def iem_scores_backward(dz: Tensor, a: Tensor, b: Tensor, branch: Branch) -> tuple[Tensor, ...]:
    """Gradients of ``iem_scores`` with respect to a, b and the four tensors of the branch, in that order."""
    left, right, *weights = _ready(a, b, branch)
    kernels, wide = _Kernels(Branch(*weights)), dz.float()
    wide = wide if wide.stride(-1) == 1 else wide.contiguous()
    return cast_like(gpu_interaction.scores_backward(kernels, wide, left, right, kernels.branch), (a, b, *branch))


def iem_pairs_backward(
    dz: Tensor, dfeatures: Tensor | None, a: Tensor, b: Tensor, branch: Branch
) -> tuple[Tensor, ...]:
    """Gradients of ``iem_pairs`` with respect to a, b and the four tensors of the branch, in that order."""
    left, right, *weights = _ready(a, b, branch)
    kernels = _Kernels(Branch(*weights))
    dfeatures = None if dfeatures is None else dfeatures.to(left.dtype)
    gradients = gpu_interaction.pairs_backward(kernels, dz.float(), dfeatures, left, right, kernels.branch)
    return cast_like(gradients, (a, b, *branch))


def _ready(a: Tensor, b: Tensor, branch: Branch) -> tuple[Tensor, ...]:
    """One dtype, rows contiguous."""
    rows = (t if t.stride(-1) == 1 else t.contiguous() for t in promoted(a, b, *branch))
    left, right, weight, *vectors = rows
    return left, right, weight, *(vector.contiguous() for vector in vectors)


class _Kernels:
    """The kernels of the backward with the weights of one call (``gpu_interaction.Kernels``)."""

    def __init__(self, branch: Branch) -> None:
        self.branch = branch
        self.transposed = branch.weight.t().contiguous()
        self.parts = max(1, gpu_interaction.PROGRAMS // module().weights_blocks(branch.weight.shape[0]))

    def slopes(
        self, a: Tensor, b: Tensor, dz: Tensor, dfeatures: Tensor | None, dpre: Tensor, pairs: bool
    ) -> tuple[Tensor, Tensor]:
        dbias, dout_weight = operators().slopes(a, b, *self.branch, dz, dfeatures, dpre, pairs)
        return dbias, dout_weight

    def weights(self, a: Tensor, b: Tensor, dpre: Tensor, dweight: Tensor, pairs: bool) -> None:
        operators().weights(a, b, dpre, dweight, pairs)

    def inputs(self, a: Tensor, b: Tensor, dpre: Tensor, pairs: bool) -> tuple[Tensor | None, Tensor]:
        da, db = operators().inputs(a, b, self.transposed, dpre, gpu_interaction.PROGRAMS, pairs)
        return None if pairs else da, db
