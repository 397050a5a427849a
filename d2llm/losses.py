"""The five losses of D2LLM (paper section 3.3) and one on labels, each as a function of logits and targets.

Index 0 of every group is the positive passage, 1..K are its hard negatives. Losses are computed in
float32 at least, whatever the input, with log-softmax, log-sigmoid and guarded norms, so that they
are finite wherever their inputs are; where the published formulas are finite too, both agree.

Groups of unequal size share one padded tensor and a ``valid`` mask (B, 1+K): false marks a passage
that is absent or that the teacher has not judged; whatever stands there, NaN included, is ignored.
A row whose positive is not valid takes no part. Denominators count what takes part, which is
exactly the published denominator when nothing is masked.
"""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from d2llm.errors import InputError
from d2llm.loss_inputs import as_float, group_mask, same_shape, square
from d2llm.loss_weights import DEFAULTS, LossWeights, check_form
from d2llm.rank_losses import RANK_LOSSES
from d2llm_kernels import functional

# Below this length a feature vector counts as zero: it has no direction, hence no gradient.
_ZERO_LENGTH = 1e-12


def false_negative_mask(scores: Tensor, margin: float = 0.0) -> Tensor:
    """In-batch columns that look like positives: m_ij = [s_ij > s_ii + margin].

    Args:
        scores: (B, B) float, how relevant positive j is to query i, by the teacher or a bi-encoder; NaN where it is not
            known, which masks nothing.
        margin: how far a passage must lie above the query's own positive.

    Returns:
        (B, B) bool, for the ``duplicates`` of the losses.

    Raises:
        InputError: for scores that are not square.
    """
    square("scores", scores)
    return scores > scores.diagonal()[:, None] + margin


def in_batch_loss(
    scores: Tensor, duplicates: Tensor | None = None, temperature: float = 1.0, form: str = "mean"
) -> Tensor:
    """Cross-entropy of every query against the positives of the batch: 1/B Σ_i CE(z_i,: / τ_b, i).

    The paper divides by B² (section 3.3), which leaves the term B times weaker than the teacher's terms, the more so
    the larger the batch.

    Args:
        scores: (B, B) float, row i the logits of query i against every positive of the batch.
        duplicates: (B, B) bool, true at columns to leave out of a row (see ``KnownPositives.mask`` in
            :mod:`d2llm.data.positives` and ``false_negative_mask``); the diagonal always takes part.
        temperature: τ_b.
        form: ``mean``, or ``paper`` for the literal 1/B² Σ_i.

    Returns:
        Scalar float. 0 for a batch of one.

    Raises:
        InputError: for scores that are not square, a mask of another shape or another form.
    """
    square("scores", scores)
    duplicates = _duplicates(duplicates, scores)
    cross_entropy, _ = functional.in_batch_terms(scores, duplicates=duplicates, temperature=temperature)
    return _over_queries(cross_entropy, form)


def contrastive_imitation(z: Tensor, s: Tensor, valid: Tensor | None = None, temperature: float = 1.0) -> Tensor:
    """Contrastive loss weighted by the teacher: 1/(BK) Σ_i −log softmax_k(w_ik z_ik / τ)[0].

    w_i0 = s_i0 and w_ik = 1 − s_ik (paper section 3.3, contrastive imitation): a negative that the
    teacher holds for relevant, s_ik = 1, gets no gradient.

    Args:
        z: (B, 1+K) float, student logits.
        s: (B, 1+K) float in [0, 1], teacher probabilities.
        valid: (B, 1+K) bool or None; BK becomes the number of valid negatives of rows that take part.
        temperature: τ.

    Returns:
        Scalar float. 0 when there are no negatives.

    Raises:
        InputError: for shapes that do not match.
    """
    valid = group_mask(z, s, valid)
    z, s = as_float(z).masked_fill(~valid, 0), as_float(s).masked_fill(~valid, 0)
    weights = torch.cat([s[:, :1], 1 - s[:, 1:]], dim=1)
    # The positive stays in, masked row or not, so that no row is empty: a row of one has loss 0.
    keep = torch.cat([torch.ones_like(valid[:, :1]), valid[:, 1:]], dim=1)
    logits = (weights * z / temperature).masked_fill(~keep, float("-inf"))
    return -F.log_softmax(logits, dim=1)[:, 0].sum() / valid[:, 1:].sum().clamp_min(1)


def label_contrastive(
    z: Tensor,
    valid: Tensor | None = None,
    judged: Tensor | None = None,
    share: float = 0.0,
    temperature: float = 1.0,
) -> Tensor:
    """Contrastive loss of a group with one-hot labels: 1/B Σ_i [(1 − λ) CE_i(unjudged) + λ CE_i(all)].

    CE_i(N) = −log softmax(z_i / τ)[0] over the positive and the hard negatives N of row i. A negative that the
    teacher has judged leaves its share 1 − λ to contrastive imitation; one that it has not judged has none but this.

    Args:
        z: (B, 1+K) float, student logits.
        valid: (B, 1+K) bool or None, true where a passage is present; B becomes the number of rows with at least one
            valid negative.
        judged: (B, 1+K) bool or None, true where the teacher has judged; None means nowhere. A row whose positive
            is not judged counts as not judged, since no other loss takes its negatives.
        share: λ.
        temperature: τ.

    Returns:
        Scalar float. 0 when there are no negatives.

    Raises:
        InputError: for shapes that do not match.
    """
    valid = group_mask(z, z, valid)
    if judged is not None:
        same_shape("judged", judged, z)
    judged = group_mask(z, z, torch.zeros_like(valid) if judged is None else judged)
    logits = as_float(z).masked_fill(~valid, 0) / temperature
    # The positive stays in, masked row or not, so that no row is empty: a row of one has loss 0.
    first = torch.arange(z.shape[1], device=z.device) == 0
    labelled, unjudged = (
        -F.log_softmax(logits.masked_fill(~(keep | first), float("-inf")), dim=1)[:, 0].sum()
        for keep in (valid, valid & ~judged)
    )
    rows = valid[:, 1:].any(dim=1).sum().clamp_min(1)
    return ((1 - share) * unjudged + share * labelled) / rows


def rank_imitation_correlation(z: Tensor, s: Tensor, valid: Tensor | None = None) -> Tensor:
    """One minus the Pearson correlation of student and teacher in a group: 1/B Σ_i (1 − Pearson(z_i, s_i)).

    Where either side is constant (to rounding) the correlation is taken as 0 and passes no gradient.

    Args:
        z: (B, 1+K) float, student logits.
        s: (B, 1+K) float, teacher probabilities.
        valid: (B, 1+K) bool or None; B becomes the number of rows with at least one valid negative.

    Returns:
        Scalar float in [0, 2]. 0 when there are no negatives.

    Raises:
        InputError: for shapes that do not match.
    """
    valid = group_mask(z, s, valid)
    rows = valid.sum(dim=1) > 1
    correlation = (_standardise(z, valid) * _standardise(s, valid)).sum(dim=1)
    return ((1 - correlation) * rows).sum() / rows.sum().clamp_min(1)


def rank_imitation_pairwise(
    z: Tensor,
    z_in_batch: Tensor,
    s: Tensor,
    s_in_batch: Tensor | None = None,
    valid: Tensor | None = None,
    duplicates: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    """Hard negatives above easier in-batch ones, as far as the teacher says so.

    1/(BK(B−1)) Σ_i Σ_h Σ_{e≠i} max(0, s_ih − s_ie)/scale · (−log σ(z_ih − z_ie)), h over the hard
    negatives of row i, e over the other rows' positives (paper section 3.3, rank imitation). The teacher's
    probabilities are constants: they get no gradient.

    Args:
        z: (B, 1+K) float, student logits of the groups.
        z_in_batch: (B, B) float, student logits of every query against every positive.
        s: (B, 1+K) float, teacher probabilities of the groups; NaN marks a passage the teacher has not judged.
        s_in_batch: (B, B) float, teacher probabilities in the batch; None, or NaN at a pair, means
            that the teacher has not judged it, which counts as 0. The diagonal is not read.
        valid: (B, 1+K) bool or None.
        duplicates: (B, B) bool or None, in-batch columns to leave out (see ``in_batch_loss``).
        scale: divisor of the score gaps.

    Returns:
        Scalar float; the denominator counts the triples (i, h, e) that take part. 0 when there are
        none, as in a batch of one or without hard negatives.

    Raises:
        InputError: for shapes that do not match.
    """
    judged = group_mask(z, s, valid) & ~s.isnan()
    return _in_batch_parts(z_in_batch, duplicates, z, s, s_in_batch, judged, LossWeights(scale=scale))[1]


def cosine_relation(features: Tensor) -> Tensor:
    """Cosine similarities within each group, as :func:`cosines`: (..., N, F) float -> (..., N, N)."""
    return cosines(features, features)


def cosines(queries: Tensor, passages: Tensor) -> Tensor:
    """Cosine similarity of every pair: (..., N, D) and (..., M, D) float -> (..., N, M) float32 or float64.

    A zero vector has similarity 0 with everything, itself included, and gets no gradient.
    """
    left, right, device = _unit(as_float(queries)), _unit(as_float(passages)), queries.device.type
    # Autocast, where the device has it, would take the product, and it alone, in half precision.
    with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext():
        return left @ right.transpose(-1, -2)


def feature_imitation(features: Tensor, teacher_relation: Tensor, valid: Tensor | None = None) -> Tensor:
    """Distance of the two cosine matrices of a group: 1/(1+K)² Σ_i ‖R^T_i − R^S_i‖²_F (paper section 3.3).

    Args:
        features: (B, 1+K, F) float, student pair features (the interaction module's branch output).
        teacher_relation: (B, 1+K, 1+K) float, cosine matrices of the teacher's features; rows and
            columns that are NaN count as not valid.
        valid: (B, 1+K) bool or None; (1+K)² becomes, row by row, the square of its valid passages.

    Returns:
        Scalar float. A row without any valid passage adds 0.

    Raises:
        InputError: for shapes that do not match.
    """
    if features.dim() != 3:
        raise InputError(f"features: expected (B, 1+K, F), got {tuple(features.shape)}")
    batch, group = features.shape[:2]
    if teacher_relation.shape != (batch, group, group):
        expected = (batch, group, group)
        raise InputError(f"teacher_relation: expected {expected}, got {tuple(teacher_relation.shape)}")
    # The diagonal tells whether the teacher has a feature for a passage.
    judged = ~teacher_relation.diagonal(dim1=1, dim2=2).isnan()
    valid = group_mask(judged, judged, valid) & judged
    valid = valid & valid[:, :1]
    both = valid[:, :, None] & valid[:, None, :]
    student = cosine_relation(features.masked_fill(~valid[:, :, None], 0))
    difference = (as_float(teacher_relation) - student).masked_fill(~both, 0)
    return (difference.square().sum(dim=(1, 2)) / valid.sum(dim=1).clamp_min(1).square()).sum()


def d2llm_loss(
    z: Tensor,
    z_in_batch: Tensor,
    s: Tensor | None = None,
    s_in_batch: Tensor | None = None,
    features: Tensor | None = None,
    teacher_relation: Tensor | None = None,
    valid: Tensor | None = None,
    duplicates: Tensor | None = None,
    embedding_cosines: Tensor | None = None,
    log_odds: Tensor | None = None,
    weights: LossWeights = DEFAULTS,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The total loss of a batch and its weighted parts.

    Args:
        z: (B, 1+K) float, student logits of the groups.
        z_in_batch: (B, B) float, student logits of every query against every positive.
        s: (B, 1+K) float or None, teacher probabilities; None leaves only the in-batch loss and the one on labels (and
            feature imitation, where asked for). NaN marks a passage the teacher has not judged.
        s_in_batch: (B, B) float or None, teacher probabilities in the batch.
        features: (B, 1+K, F) float or None, student pair features.
        teacher_relation: (B, 1+K, 1+K) float or None; with ``features`` it turns feature imitation on.
        valid: (B, 1+K) bool or None, true where a passage is present.
        duplicates: (B, B) bool or None, see ``in_batch_loss``.
        embedding_cosines: (B, B) float or None, cosines of the embeddings of every query and every positive.
        log_odds: (B, 1+K) float or None, the teacher's logits of yes less those of no, NaN where it has not judged;
            with ``weights.rank`` they turn that loss of :mod:`d2llm.rank_losses` on.
        weights: weights and temperatures.

    Returns:
        The total (scalar) and the weighted parts, which sum to it: ``in_batch``, ``cosine``, ``labels``,
        ``contrastive``, ``rank_correlation``, ``rank_pairwise``, ``feature``, ``rank``; parts that do not
        apply or weigh 0 are left out.

    Raises:
        InputError: for shapes that do not match.
    """
    parts: dict[str, Tensor] = {}
    judged = None if s is None else group_mask(z, s, valid) & ~s.isnan()
    ranked = judged if weights.gamma else None
    if weights.in_batch or ranked is not None:
        # Both terms read the whole matrix: one pass for the two.
        in_batch, pairwise = _in_batch_parts(z_in_batch, duplicates, z, s, s_in_batch, ranked, weights)
    if weights.in_batch:
        parts["in_batch"] = weights.in_batch * in_batch
    if weights.cosine and embedding_cosines is not None:
        given = embedding_cosines, duplicates, weights.cosine_temperature, weights.in_batch_form
        parts["cosine"] = weights.cosine * in_batch_loss(*given)
    if weights.labels and z.shape[1] > 1:
        parts["labels"] = weights.labels * label_contrastive(z, valid, judged, weights.label_share, weights.temperature)
    if s is not None and judged is not None:
        if imitation := weights.alpha * (1 - weights.label_share):
            parts["contrastive"] = imitation * contrastive_imitation(z, s, judged, weights.temperature)
        if weights.beta:
            parts["rank_correlation"] = weights.beta * rank_imitation_correlation(z, s, judged)
        if weights.gamma:
            parts["rank_pairwise"] = weights.gamma * pairwise
    if features is not None and teacher_relation is not None and weights.eta:
        parts["feature"] = weights.eta * feature_imitation(features, teacher_relation, valid)
    if log_odds is not None and weights.rank is not None and weights.rank_weight:
        rank = RANK_LOSSES[weights.rank](z, log_odds, valid, weights.rank_temperature)
        parts["rank"] = weights.rank_weight * rank
    total = torch.stack(list(parts.values())).sum() if parts else 0 * as_float(z_in_batch).sum()
    return total, parts


def _in_batch_parts(
    z_in_batch: Tensor,
    duplicates: Tensor | None,
    z: Tensor,
    s: Tensor | None,
    s_in_batch: Tensor | None,
    judged: Tensor | None,
    weights: LossWeights,
) -> tuple[Tensor, Tensor]:
    """In-batch cross-entropy and pairwise rank imitation; the second is 0 where no mask of judged passages is given."""
    size = square("z_in_batch", z_in_batch)
    duplicates = _duplicates(duplicates, z_in_batch)
    temperature = weights.in_batch_temperature
    if s is None or judged is None:
        cross_entropy, pairwise = functional.in_batch_terms(z_in_batch, duplicates=duplicates, temperature=temperature)
        return _over_queries(cross_entropy, weights.in_batch_form), pairwise.sum()
    if size != len(z):
        raise InputError(f"z_in_batch: expected ({len(z)}, {len(z)}) for z {tuple(z.shape)}, got ({size}, {size})")
    if s_in_batch is not None:
        same_shape("s_in_batch", s_in_batch, z_in_batch)
        s_in_batch = as_float(s_in_batch)
    hard = judged[:, 1:]
    s_hard = as_float(s)[:, 1:].masked_fill(~hard, float("nan"))
    cross_entropy, pairwise = functional.in_batch_terms(
        z_in_batch, z[:, 1:], s_hard, s_in_batch, duplicates, temperature
    )
    easy: Tensor | int = size - 1
    if duplicates is not None:
        # A sum of bool in int64 would first hold a matrix of int64.
        easy = easy - duplicates.sum(dim=1, dtype=torch.int32) + duplicates.diagonal().int()
    triples = (hard.sum(dim=1) * easy).sum()
    pairwise = pairwise.sum() / weights.scale / triples.clamp_min(1)
    return _over_queries(cross_entropy, weights.in_batch_form), pairwise


def _over_queries(cross_entropy: Tensor, form: str) -> Tensor:
    """The in-batch loss of the cross-entropies (B,) of a batch's queries."""
    check_form("form", form)
    size = len(cross_entropy)
    return cross_entropy.sum() / (size if form == "mean" else size**2)


def _duplicates(duplicates: Tensor | None, scores: Tensor) -> Tensor | None:
    """The mask as bool, its shape checked."""
    if duplicates is not None:
        same_shape("duplicates", duplicates, scores)
        duplicates = duplicates.bool()
    return duplicates


def _unit(x: Tensor) -> Tensor:
    """Vectors of length 1 along the last axis; vectors without length become 0, with gradient 0."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    present = length > _ZERO_LENGTH
    return torch.where(present, x / torch.where(present, length, 1), 0)


def _standardise(x: Tensor, valid: Tensor) -> Tensor:
    """Centred rows of length 1 over their valid entries, 0 elsewhere and in rows constant to rounding."""
    x = as_float(x).masked_fill(~valid, 0)
    centred = (x - x.sum(dim=1, keepdim=True) / valid.sum(dim=1, keepdim=True).clamp_min(1)).masked_fill(~valid, 0)
    # What the subtraction of the mean leaves of a constant row is rounding of this size.
    rounding = 8 * torch.finfo(x.dtype).eps * torch.linalg.vector_norm(x.detach(), dim=1, keepdim=True)
    constant = torch.linalg.vector_norm(centred.detach(), dim=1, keepdim=True) <= rounding
    return _unit(centred.masked_fill(constant, 0))
