"""What travels together below the public functions: the weights of a branch, the scores of a batch."""

from typing import NamedTuple

from torch import Tensor


class Branch(NamedTuple):
    """The weights of one task's branch: weight (F, F), bias (F,), out_weight (1, F), out_bias (1,).

    The branches of several tasks are stacked: weight (T, F, F) and bias (T, F), one out_weight and out_bias for all.
    """

    weight: Tensor
    bias: Tensor
    out_weight: Tensor
    out_bias: Tensor

    def of(self, task: int) -> "Branch":
        """The branch of one task, from stacked ones."""
        return Branch(self.weight[task], self.bias[task], self.out_weight, self.out_bias)


class InBatch(NamedTuple):
    """The scores that the losses over all pairs of a batch look at, as ``functional.in_batch_terms`` takes them.

    z_in_batch (B, B), z_hard and s_hard (B, K), s_in_batch and duplicates (B, B) or None.
    """

    z_in_batch: Tensor
    z_hard: Tensor
    s_hard: Tensor
    s_in_batch: Tensor | None
    duplicates: Tensor | None
    temperature: float

    def scores(self) -> tuple[Tensor, ...]:
        """The tensors of scores that are given."""
        given = (self.z_in_batch, self.z_hard, self.s_hard)
        return given if self.s_in_batch is None else (*given, self.s_in_batch)
