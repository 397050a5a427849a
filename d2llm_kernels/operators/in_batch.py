"""The two losses over all pairs of a batch, not yet averaged (docs/algebra.md, section 6)."""

from typing import Any

import torch
from torch import Tensor

from d2llm_kernels import backends
from d2llm_kernels.branch import InBatch
from d2llm_kernels.errors import require, shape
from d2llm_kernels.operators.pooling import MASKS
from d2llm_kernels.tensors import accumulate_dtype, empty_gradients, promotion


def check_in_batch(
    z_in_batch: Tensor,
    z_hard: Tensor | None,
    s_hard: Tensor | None,
    s_in_batch: Tensor | None,
    duplicates: Tensor | None,
    temperature: float,
) -> None:
    """Check the scores of a batch's pairs (B, B) against those of its hard negatives (B, K).

    Raises:
        ArgumentError: on a wrong shape, dtype or device, on one of ``z_hard`` and ``s_hard`` without the other, or on
            a temperature that is not positive or has no inverse in float32.
    """
    require(z_in_batch.dim() == 2 and z_in_batch.shape[0] > 0, "z_in_batch", "shape (B, B), B > 0", shape(z_in_batch))
    batch = z_in_batch.shape[0]
    require(z_in_batch.shape[1] == batch, "z_in_batch", f"shape ({batch}, {batch})", shape(z_in_batch))
    require((z_hard is None) == (s_hard is None), "s_hard", "given together with z_hard", "one of them alone")
    if z_hard is not None and s_hard is not None:
        require(z_hard.dim() == 2 and z_hard.shape[0] == batch, "z_hard", f"shape ({batch}, K)", shape(z_hard))
        require(s_hard.shape == z_hard.shape, "s_hard", f"shape {shape(z_hard)}", shape(s_hard))
    named = {"z_in_batch": z_in_batch, "z_hard": z_hard, "s_hard": s_hard, "s_in_batch": s_in_batch}
    for name, tensor in named.items():
        if tensor is not None:
            require(tensor.is_floating_point(), name, "a floating point tensor", tensor.dtype)
    for name, tensor in (named | {"duplicates": duplicates}).items():
        if tensor is not None:
            require(tensor.device == z_in_batch.device, name, f"device {z_in_batch.device}", tensor.device)
    for name, tensor in (("s_in_batch", s_in_batch), ("duplicates", duplicates)):
        if tensor is not None:
            require(tensor.shape == z_in_batch.shape, name, f"shape {shape(z_in_batch)}", shape(tensor))
    if duplicates is not None:
        require(duplicates.dtype in MASKS, "duplicates", "bool or integers", duplicates.dtype)
    possible = torch.finfo(torch.float32).smallest_normal <= temperature < float("inf")
    require(possible, "temperature", "a positive number whose inverse is finite in float32", temperature)


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
        BackendError: if a backend named explicitly is missing or, as "cuda", has no kernels of it.
    """
    check_in_batch(z_in_batch, z_hard, s_hard, s_in_batch, duplicates, temperature)
    if z_hard is None or s_hard is None:
        z_hard = s_hard = z_in_batch.new_empty(z_in_batch.shape[0], 0)
    batch = InBatch(z_in_batch, z_hard, s_hard, s_in_batch, duplicates, temperature)
    chosen = backends.select("in_batch_terms", backend, z_in_batch.device, promotion(*batch.scores()))
    if formulas := backends.formulas(chosen):
        return formulas.in_batch_terms(batch)
    return in_batch_terms_operator(*batch, chosen)


@torch.library.custom_op("d2llm::in_batch_terms", mutates_args=())
def in_batch_terms_operator(
    z_in_batch: Tensor,
    z_hard: Tensor,
    s_hard: Tensor,
    s_in_batch: Tensor | None,
    duplicates: Tensor | None,
    temperature: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """The work of ``in_batch_terms`` by a backend chosen beforehand."""
    batch = InBatch(z_in_batch, z_hard, s_hard, s_in_batch, duplicates, temperature)
    return backends.named(backend).in_batch().in_batch_terms(batch)


@in_batch_terms_operator.register_fake
def _(
    z_in_batch: Tensor,
    z_hard: Tensor,
    s_hard: Tensor,
    s_in_batch: Tensor | None,
    duplicates: Tensor | None,
    temperature: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    scores = InBatch(z_in_batch, z_hard, s_hard, s_in_batch, duplicates, temperature).scores()
    rows = z_in_batch.new_empty(z_in_batch.shape[0], dtype=accumulate_dtype(promotion(*scores)))
    return rows, torch.empty_like(rows)


@torch.library.custom_op("d2llm::in_batch_terms_backward", mutates_args=())
def in_batch_terms_backward(
    dcross_entropy: Tensor | None,
    dpairwise: Tensor | None,
    z_in_batch: Tensor,
    z_hard: Tensor,
    s_hard: Tensor,
    s_in_batch: Tensor | None,
    duplicates: Tensor | None,
    temperature: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Gradients of ``in_batch_terms`` for the student's two tensors."""
    batch = InBatch(z_in_batch, z_hard, s_hard, s_in_batch, duplicates, temperature)
    return backends.named(backend).in_batch().in_batch_terms_backward(dcross_entropy, dpairwise, batch)


@in_batch_terms_backward.register_fake
def _(
    dcross_entropy: Tensor | None, dpairwise: Tensor | None, z_in_batch: Tensor, z_hard: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    return empty_gradients((z_in_batch, z_hard), (True, True))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:5])
    ctx.temperature, ctx.backend = inputs[5:]


def _differentiate(ctx: Any, dcross_entropy: Tensor | None, dpairwise: Tensor | None) -> tuple[Any, ...]:
    inputs = (*ctx.saved_tensors, ctx.temperature, ctx.backend)
    return (*in_batch_terms_backward(dcross_entropy, dpairwise, *inputs), None, None, None, None, None)


in_batch_terms_operator.register_autograd(_differentiate, setup_context=_save)
