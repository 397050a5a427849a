"""The formulas of D2LLM written out literally (arXiv 2406.17262, sections 3.2 and 3.3): the yardstick.

Nothing here is folded, tiled or fused. Any floating dtype works, float64 included, and gradients come
from autograd. Every other backend is judged by its distance to these functions in float64.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from d2llm_kernels.errors import require
from d2llm_kernels.offsets import packed_bounds

Affine = tuple[Tensor, Tensor]
Norm = tuple[Tensor, Tensor, float]


def masked_softmax(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax over the last dimension of the entries whose mask is nonzero; a row with none is all 0.

    Args:
        scores: (..., L).
        mask: broadcastable to ``scores``, or None.
    """
    if scores.shape[-1] == 0:
        return scores
    valid = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask.bool().expand_as(scores)
    scores = scores.masked_fill(~valid, -math.inf)
    top = scores.detach().amax(-1, keepdim=True)
    # A row without a valid token has top = -inf, and -inf minus -inf is NaN.
    weights = torch.exp(scores - top.masked_fill(top == -math.inf, 0.0))
    total = weights.sum(-1, keepdim=True)
    return weights / total.masked_fill(total == 0, 1.0)


def attn_pool(
    x: Tensor, u: Tensor, mask: Tensor | None = None, cu_seqlens: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Softmax-weighted sums of the tokens, one for each row of ``u``.

    Args:
        x: (B, L, D) padded, or (T, D) packed.
        u: (H, D) one query per head, the scale included.
        mask: (B, L) bool or int, nonzero for a valid token.
        cu_seqlens: (B + 1,) offsets of the packed sequences.

    Returns:
        pooled (B, H, D) and lse (B, H), the logarithm of the softmax denominator. A sequence without a
        valid token has pooled 0 and lse -inf.
    """
    if cu_seqlens is not None:
        parts = [attn_pool(x[None, s:e], u) for s, e in packed_bounds(cu_seqlens, x.shape[0])]
        if not parts:
            return x.new_zeros(0, *u.shape), x.new_zeros(0, u.shape[0])
        return torch.cat([p for p, _ in parts]), torch.cat([lse for _, lse in parts])
    x, wide = _valid_tokens(x, mask)
    scores = (x @ u.T).transpose(1, 2)
    pooled = masked_softmax(scores, wide) @ x
    if wide is not None:
        scores = scores.masked_fill(~wide, -math.inf)
    return pooled, _logsumexp(scores)


def pma(
    x: Tensor,
    seed: Tensor,
    fc_q: Affine,
    fc_k: Affine,
    fc_v: Affine,
    fc_o: Affine,
    num_heads: int,
    ln0: Norm | None = None,
    ln1: Norm | None = None,
    mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    residual: str = "seed",
) -> Tensor:
    """Pooling by multi-head attention with learned seeds, keys and values built for every token.

    Args:
        x: (B, L, D) padded, or (T, D) packed.
        seed: (1, M, E), where E is the output width.
        fc_q, fc_k, fc_v, fc_o: (weight, bias) pairs: (E, E), (E, D), (E, D), (E, E).
        ln0, ln1: (weight, bias, eps) of the layer norms, or None for none.
        mask, cu_seqlens: as in ``attn_pool``.
        residual: "seed" adds the seed itself, "projected" adds fc_q(seed).

    Returns:
        (B, M, E).
    """
    if cu_seqlens is not None:
        bounds = packed_bounds(cu_seqlens, x.shape[0])
        rows = [
            pma(x[None, s:e], seed, fc_q, fc_k, fc_v, fc_o, num_heads, ln0, ln1, residual=residual) for s, e in bounds
        ]
        return torch.cat(rows) if rows else x.new_zeros(0, seed.shape[1], seed.shape[2])
    x, wide = _valid_tokens(x, mask)
    width = seed.shape[-1]
    query = F.linear(seed, *fc_q)
    key, value = F.linear(x, *fc_k), F.linear(x, *fc_v)

    def heads(tensor: Tensor) -> Tensor:
        return tensor.unflatten(-1, (num_heads, width // num_heads)).transpose(1, 2)

    scores = heads(query) @ heads(key).transpose(-1, -2) / math.sqrt(width)
    weights = masked_softmax(scores, None if wide is None else wide[:, None])
    attended = (weights @ heads(value)).transpose(1, 2).flatten(2)
    out = (seed if residual == "seed" else query) + attended
    if ln0 is not None:
        out = F.layer_norm(out, (width,), *ln0)
    out = out + torch.relu(F.linear(out, *fc_o))
    if ln1 is not None:
        out = F.layer_norm(out, (width,), *ln1)
    return out


def iem(
    q: Tensor, p: Tensor, task: int | Tensor, linear1: Affine, projections: list[Affine], linear2: Affine
) -> tuple[Tensor, Tensor]:
    """Interaction emulation of the pairs (q, p), every branch evaluated and the task's one selected.

    Args:
        q, p: (..., D), of equal shape.
        task: branch number, or an integer tensor (...) with one per pair.
        linear1: weight (F, 2D), bias (F,). projections: one (F, F), (F,) pair per task. linear2: (1, F), (1,).

    Returns:
        z (...) and the features x_t (..., F).
    """
    x = torch.relu(F.linear(torch.cat([q, p], dim=-1), *linear1))
    branches = torch.stack([torch.relu(F.linear(x, *projection)) for projection in projections])
    chosen = torch.as_tensor(task, device=x.device).expand(x.shape[:-1])
    features = torch.gather(branches, 0, chosen.long()[None, ..., None].expand(1, *x.shape)).squeeze(0)
    return F.linear(features, *linear2).squeeze(-1), features


def score_all(
    q: Tensor, p: Tensor, task: int | Tensor, linear1: Affine, projections: list[Affine], linear2: Affine
) -> Tensor:
    """``iem`` of every query with every passage: (Nq, D), (Np, D) -> (Nq, Np). ``task`` is an int or (Nq,)."""
    pairs = (q.shape[0], p.shape[0], q.shape[1])
    tasks = task[:, None] if isinstance(task, Tensor) and task.dim() else task
    return iem(q[:, None].expand(pairs), p[None].expand(pairs), tasks, linear1, projections, linear2)[0]


def iem_pairs(
    a: Tensor, b: Tensor, weight: Tensor, bias: Tensor, out_weight: Tensor, out_bias: Tensor
) -> tuple[Tensor, Tensor]:
    """One branch from projected texts: z = out_weight relu(weight relu(a + b) + bias) + out_bias.

    Args:
        a, b: (..., F), broadcast against each other; ``a`` holds linear1's bias.

    Returns:
        z (...) and features (..., F).
    """
    features = torch.relu(F.linear(torch.relu(a + b), weight, bias))
    return F.linear(features, out_weight, out_bias).squeeze(-1), features


def iem_scores(a: Tensor, b: Tensor, weight: Tensor, bias: Tensor, out_weight: Tensor, out_bias: Tensor) -> Tensor:
    """``iem_pairs`` of every row of a (Nq, F) with every row of b (Np, F): (Nq, Np)."""
    return iem_pairs(a[:, None], b[None], weight, bias, out_weight, out_bias)[0]


def topk(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best columns of each row, best first, the lower index first among equals; NaN counts as -inf.

    Args:
        scores: (Nq, Np).

    Returns:
        values (Nq, k) and indices (Nq, k) int64.

    Raises:
        ArgumentError: unless 0 < k <= Np.
    """
    require(0 < k <= scores.shape[1], "k", f"between 1 and the number of passages, {scores.shape[1]}", k)
    scores = scores.masked_fill(scores.isnan(), -math.inf)
    values, indices = torch.sort(scores, dim=1, descending=True, stable=True)
    return values[:, :k], indices[:, :k]


def in_batch_terms(
    z_in_batch: Tensor,
    z_hard: Tensor,
    s_hard: Tensor,
    s_in_batch: Tensor | None = None,
    duplicates: Tensor | None = None,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Row sums of the two losses over all pairs of a batch: cross-entropy and pairwise rank imitation.

    Args:
        z_in_batch: (B, B) student logits of every query against every positive.
        z_hard, s_hard: (B, K) student logits and teacher probabilities of the hard negatives; one whose teacher
            probability is NaN takes no part.
        s_in_batch: (B, B) teacher probabilities; None, or NaN at a pair, counts as 0.
        duplicates: (B, B) columns to leave out of a row where nonzero; the diagonal is not read.
        temperature: of the cross-entropy.

    Returns:
        CE(z_i,: / temperature, i) and Σ_h Σ_{e≠i} max(0, s_ih − s_ie) · (−log σ(z_ih − z_ie)), each (B,). The teacher's
        probabilities get no gradient.
    """
    diagonal = torch.eye(len(z_in_batch), dtype=torch.bool, device=z_in_batch.device)
    left_out = torch.zeros_like(diagonal) if duplicates is None else duplicates.bool() & ~diagonal
    logits = (z_in_batch / temperature).masked_fill(left_out, -math.inf)
    cross_entropy = -F.log_softmax(logits, 1).diagonal()
    s_hard = s_hard.detach()
    easy = torch.zeros_like(z_in_batch) if s_in_batch is None else s_in_batch.detach()
    easy = easy.masked_fill(easy.isnan(), 0)
    triples = ~s_hard.isnan()[:, :, None] & ~(left_out | diagonal)[:, None, :]
    gap = (s_hard[:, :, None] - easy[:, None, :]).clamp_min(0).masked_fill(~triples, 0)
    margin = (z_hard[:, :, None] - z_in_batch[:, None, :]).masked_fill(~triples, 0)
    return cross_entropy, -(gap * F.logsigmoid(margin)).sum((1, 2))


def _valid_tokens(x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Zero the masked tokens, so that NaN in a padded tail cannot spread as 0 * NaN; mask as (B, 1, L)."""
    if mask is None:
        return x, None
    valid = mask.bool()
    return torch.where(valid[..., None], x, torch.zeros((), dtype=x.dtype, device=x.device)), valid[:, None]


def _logsumexp(scores: Tensor) -> Tensor:
    """logsumexp over the last dimension whose gradient is 0, not NaN, where every entry is -inf."""
    if scores.shape[-1] == 0:
        return scores.new_full(scores.shape[:-1], -math.inf)
    empty = (scores == -math.inf).all(-1, keepdim=True)
    return torch.logsumexp(scores.masked_fill(empty, 0.0), -1).masked_fill(empty.squeeze(-1), -math.inf)


def lora_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    scaling: float = 1.0,
    dropped: Tensor | None = None,
) -> Tensor:
    """A linear layer and the low-rank adapter beside it (arXiv 2106.09685, section 4.1).

    Args:
        x: (..., K).
        weight: (N, K). bias: (N,), or None.
        a: (R, K). b: (N, R).
        scaling: factor of the adapter.
        dropped: (..., K) x as the adapter sees it, after dropout; None for x.

    Returns:
        (..., N).
    """
    adapter = F.linear(F.linear(x if dropped is None else dropped, a), b)
    return F.linear(x, weight, bias) + scaling * adapter
