"""The losses over all pairs of a batch on the C++ kernels, in float32."""

from torch import Tensor

from d2llm_kernels.backends.cpu.library import operators
from d2llm_kernels.branch import InBatch
from d2llm_kernels.tensors import cast_like


def in_batch_terms(batch: InBatch) -> tuple[Tensor, Tensor]:
    """Forward of ``functional.in_batch_terms``."""
    return operators().in_batch_terms(*_ready(batch))


def in_batch_terms_backward(
    dcross_entropy: Tensor | None, dpairwise: Tensor | None, batch: InBatch
) -> tuple[Tensor, Tensor]:
    """Gradients of z_in_batch and z_hard; None stands for a gradient of 0."""
    gradients = operators().in_batch_terms_backward(_single(dcross_entropy), _single(dpairwise), *_ready(batch))
    dz_in_batch, dz_hard = cast_like(gradients, batch[:2])
    return dz_in_batch, dz_hard


def _ready(batch: InBatch) -> InBatch:
    z, z_hard, s_hard = (scores.float() for scores in batch[:3])
    flags = None if batch.duplicates is None else batch.duplicates.bool()
    return InBatch(z, z_hard, s_hard, _single(batch.s_in_batch), flags, batch.temperature)


def _single(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.float()
