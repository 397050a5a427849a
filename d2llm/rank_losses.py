"""Losses by which a student learns a teacher's order or margins of a group, beside the paper's own.

All take the student's logits z and the teacher's log-odds t (its logit of yes less that of no, or any score that grows
with relevance), both (B, 1+K), index 0 the positive. A passage that is not ``valid`` or whose t is NaN takes no part,
nor does a row whose positive does not. The teacher's numbers are constants: they get no gradient.
"""

from collections.abc import Callable
from functools import wraps
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from d2llm.loss_inputs import as_float, group_mask


class RankLoss(Protocol):
    """A loss of student logits and teacher log-odds."""

    def __call__(self, z: Tensor, t: Tensor, valid: Tensor | None = None, temperature: float = 1.0) -> Tensor: ...


#: What is said of every one of them.
_ARGUMENTS = """

    Args:
        z: (B, 1+K) float, student logits.
        t: (B, 1+K) float, teacher log-odds; NaN marks a passage it has not judged.
        valid: (B, 1+K) bool or None.
        temperature: τ.

    Returns:
        Scalar float. 0 where no row has a judged negative, or no two passages that the formula compares.

    Raises:
        InputError: for shapes that do not match.
    """


def _rank_loss(formula: Callable[[Tensor, Tensor, Tensor, float], Tensor]) -> RankLoss:
    """The loss of a formula over what takes part: logits, constants and the mask as :func:`_judged` gives them."""

    @wraps(formula)
    def loss(z: Tensor, t: Tensor, valid: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        return formula(*_judged(z, t, valid), temperature)

    loss.__doc__ = (formula.__doc__ or "").rstrip() + _ARGUMENTS
    return loss


def _judged(z: Tensor, t: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Logits and constants, in float32 at least and 0 where they take no part, and the mask of what does."""
    judged = group_mask(z, t, valid) & ~t.isnan()
    judged = judged & judged[:, :1]
    return as_float(z).masked_fill(~judged, 0), as_float(t.detach()).masked_fill(~judged, 0), judged


def _pairs(valid: Tensor) -> Tensor:
    """(B, G, G) bool: two different valid passages of a group."""
    other = ~torch.eye(valid.shape[1], dtype=torch.bool, device=valid.device)
    return valid[:, :, None] & valid[:, None, :] & other


@_rank_loss
def ranknet(z: Tensor, t: Tensor, valid: Tensor, temperature: float) -> Tensor:
    """RankNet over the teacher's order (Burges et al. 2005): 1/R Σ_i 1/|P_i| Σ_(a,b)∈P_i −log σ((z_a − z_b) / τ).

    P_i holds the pairs of row i with t_a > t_b; R counts the rows that have some.
    """
    above = (t[:, :, None] > t[:, None, :]) & _pairs(valid)
    losses = F.softplus((z[:, None, :] - z[:, :, None]) / temperature).masked_fill(~above, 0)
    pairs = above.sum(dim=(1, 2))
    return (losses.sum(dim=(1, 2)) / pairs.clamp_min(1)).sum() / (pairs > 0).sum().clamp_min(1)


@_rank_loss
def listnet(z: Tensor, t: Tensor, valid: Tensor, temperature: float) -> Tensor:
    """ListNet's top-one form (Cao et al. 2007) as a divergence: 1/R Σ_i KL(softmax(t_i) ‖ softmax(z_i / τ)).

    It is ListNet's cross-entropy less the teacher's entropy, which has no gradient: 0 where both agree. R counts the
    rows with at least one valid negative.
    """
    # The positive stays in, masked row or not, so that no row is empty: a row of one has divergence 0.
    left_out = ~valid & (torch.arange(z.shape[1], device=z.device) > 0)
    teacher, student = (
        F.log_softmax(x.masked_fill(left_out, float("-inf")), dim=1).masked_fill(left_out, 0)
        for x in (t, z / temperature)
    )
    shares = teacher.exp().masked_fill(left_out, 0)
    return (shares * (teacher - student)).sum() / valid[:, 1:].any(dim=1).sum().clamp_min(1)


@_rank_loss
def margin_mse(z: Tensor, t: Tensor, valid: Tensor, temperature: float) -> Tensor:
    """Squared error of the margins (Hofstätter et al. 2020): 1/N Σ_i Σ_k ((z_i0 − z_ik) / τ − (t_i0 − t_ik))².

    N counts the valid negatives.
    """
    errors = (z[:, :1] - z[:, 1:]) / temperature - (t[:, :1] - t[:, 1:])
    negatives = valid[:, 1:]
    return errors.masked_fill(~negatives, 0).square().sum() / negatives.sum().clamp_min(1)


@_rank_loss
def adr_mse(z: Tensor, t: Tensor, valid: Tensor, temperature: float) -> Tensor:
    """Squared error of smooth ranks, discounted (Schlatt et al. 2024): 1/N Σ_i Σ_a (π_ia − π̂_ia)² / log₂(π_ia + 1).

    π is a passage's rank by the teacher, 1 the best, equal ones sharing their mean; its smooth rank by the student
    (Qin et al. 2010) is π̂_a = 1 + Σ_(b≠a) σ((z_b − z_a) / τ). N counts the valid passages of rows with at least one
    valid negative.
    """
    pairs = _pairs(valid)
    # Indexed [i, a, b]: how far b stands before a.
    before = (t[:, None, :] > t[:, :, None]).to(z.dtype) + (t[:, None, :] == t[:, :, None]).to(z.dtype) / 2
    smooth = torch.sigmoid((z[:, None, :] - z[:, :, None]) / temperature)
    rank, approximate = (1 + x.masked_fill(~pairs, 0).sum(dim=2) for x in (before, smooth))
    counted = valid & valid[:, 1:].any(dim=1, keepdim=True)
    errors = ((rank - approximate).square() / torch.log2(rank + 1)).masked_fill(~counted, 0)
    return errors.sum() / counted.sum().clamp_min(1)


#: By the name that a configuration gives them.
RANK_LOSSES: dict[str, RankLoss] = {
    "ranknet": ranknet,
    "listnet": listnet,
    "margin_mse": margin_mse,
    "adr_mse": adr_mse,
}
