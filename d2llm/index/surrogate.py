"""A surrogate of the interaction module: an inner product that orders passages almost as it does, in a few bytes each.

Two affine maps of projected queries and passages are fitted so that the softmax of their inner products follows that of
the module's own scores: first on passages drawn at random, then on those that each query's product has put first, where
the order matters and is hardest to tell. No labels are needed. What the product chooses is scored in full by the module
(the plan of arXiv 2405.03651 and 2407.15462, with certificates of ``d2llm.index.certificate``).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

#: Width R of the surrogate by default.
RANK = 128
# Of the fit: steps of Adam, their rate, queries and common passages a step, best passages of each query beside those,
# and what the pointwise term weighs.
_STEPS, _RATE, _QUERIES, _COMMON, _BEST, _POINTWISE = 400, 3e-3, 96, 1000, 20, 0.1
# Of going on near the top: the rate, queries and common passages a step, passages of each query beside those, how many
# of them are its best, and what the pointwise term of these weighs.
_NEAR_RATE, _NEAR_QUERIES, _NEAR_COMMON, _NEAR, _NEAR_BEST, _NEAR_POINTWISE = 2e-3, 64, 256, 64, 16, 1.0
# Share of the passages' numbers that int8 holds without clipping.
_HELD = 0.9999


@dataclass(frozen=True)
class Maps:
    """The surrogate's maps.

    ``query`` and ``passage`` (R, F), ``query_bias`` and ``passage_bias`` (R,), float32. Passages are mapped to the
    range of int8 over all, queries each for itself, which no ranking sees.
    """

    query: Tensor
    query_bias: Tensor
    passage: Tensor
    passage_bias: Tensor

    def queries(self, a: Tensor) -> Tensor:
        """Projected queries (Nq, F) as (Nq, R) int8."""
        mapped = functional.linear(a.float().cpu(), self.query, self.query_bias)
        largest = mapped.abs().amax(1, keepdim=True)
        return (mapped * (127 / largest.where(largest > 0, 1))).round().to(torch.int8)

    def passages(self, b: Tensor) -> Tensor:
        """Projected passages (n, F) as (n, R) int8."""
        return (
            functional.linear(b.float().cpu(), self.passage, self.passage_bias).round().clamp(-127, 127).to(torch.int8)
        )


@dataclass(frozen=True)
class Near:
    """Passages near the top of each query: ``places`` (Nq, M) int64, their ``scores`` (Nq, M) by the module.

    ``take`` gives projected passages (n, F), floating, at places (n,).
    """

    places: Tensor
    scores: Tensor
    take: Callable[[Tensor], Tensor]


def fit(
    a: Tensor,
    b: Tensor,
    z: Tensor,
    rank: int,
    seed: int,
    near: Callable[[Maps], Near] | None = None,
    longer: int = 1,
) -> Maps:
    """Fit the maps to the module's scores of some queries with some passages.

    Args:
        a, b: projected queries (Nq, F) and passages (Np, F).
        z: their scores (Nq, Np).
        rank: R.
        seed: of the start and of what is drawn.
        near: what maps put first for each of the queries, to go on with.
        longer: how many times as many steps to take.
    """
    draw = torch.Generator().manual_seed(seed)
    queries, passages = _Standard.of(a), _Standard.of(b)
    x, y = queries.apply(a), passages.apply(b)
    width = a.shape[1]
    parameters = [torch.randn(rank, width, generator=draw) / width**0.5 for _ in range(2)] + [torch.zeros(rank)]
    with torch.enable_grad():
        for parameter in parameters:
            parameter.requires_grad_()
        _descend(parameters, x, y, z.float().cpu(), draw, longer * _STEPS)
    maps = _whole(parameters, y, queries, passages)
    if near is None:
        return maps
    found = near(maps)
    with torch.enable_grad():
        _descend_near(parameters, x, y, z.float().cpu(), found, passages, draw, longer * _STEPS)
    return _whole(parameters, y, queries, passages)


@dataclass(frozen=True)
class _Standard:
    """Shift and scale that give each column mean 0 and deviation 1."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> "_Standard":
        rows = rows.float().cpu()
        deviation = rows.std(0, correction=0)
        # A column that never changes tells nothing.
        return cls(rows.mean(0), deviation.where(deviation > 0, torch.inf))

    def apply(self, rows: Tensor) -> Tensor:
        return (rows.float().cpu() - self.mean) / self.deviation

    def folded(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Weight and bias that give for rows what these give for ``apply`` of them."""
        weight = weight / self.deviation
        return weight.contiguous(), bias - weight @ self.mean


def _whole(parameters: list[Tensor], y: Tensor, queries: _Standard, passages: _Standard) -> Maps:
    """Maps of projected vectors, from parameters of standardised ones."""
    g, h, bias = (parameter.detach() for parameter in parameters)
    mapped = y @ h.T
    # kthvalue, since quantile takes no more than 16 million numbers.
    scale = 127 / mapped.abs().flatten().kthvalue(max(1, int(_HELD * mapped.numel()))).values.clamp_min(1e-20)
    query, query_bias = queries.folded(g, bias)
    passage, passage_bias = passages.folded(h, torch.zeros(len(h)))
    return Maps(query, query_bias, passage * scale, passage_bias * scale)


def _descend(parameters: list[Tensor], x: Tensor, y: Tensor, z: Tensor, draw: torch.Generator, steps: int) -> None:
    """Adam on the divergence between both softmaxes and a little on the scores themselves, less their means."""
    g, h, bias = parameters
    step = _stepping(parameters, _RATE, steps)
    best = z.topk(min(_BEST, len(y)), 1).indices
    for _ in range(steps):
        rows = torch.randint(len(x), (_QUERIES,), generator=draw)
        common = torch.randint(len(y), (_COMMON,), generator=draw)
        target = torch.cat([z[rows[:, None], best[rows]], z[rows][:, common]], 1)
        mapped = x[rows] @ g.T + bias
        own = torch.einsum("qr,qkr->qk", mapped, y[best[rows]] @ h.T)
        scores = torch.cat([own, mapped @ (y[common] @ h.T).T], 1)
        step(_divergence(scores, target) + _POINTWISE * _apart(scores, target))


def _descend_near(
    parameters: list[Tensor],
    x: Tensor,
    y: Tensor,
    z: Tensor,
    near: Near,
    passages: _Standard,
    draw: torch.Generator,
    steps: int,
) -> None:
    """The same beside passages near the top, whose scores weigh more."""
    g, h, bias = parameters
    step = _stepping(parameters, _NEAR_RATE, steps)
    order = near.scores.argsort(1, descending=True)
    best, others = order[:, :_NEAR_BEST], order[:, _NEAR_BEST:]
    for _ in range(steps):
        rows = torch.randint(len(x), (_NEAR_QUERIES,), generator=draw)
        common = torch.randint(len(y), (_NEAR_COMMON,), generator=draw)
        drawn = torch.rand(len(rows), others.shape[1], generator=draw).argsort(1)[:, : _NEAR - _NEAR_BEST]
        picked = torch.cat([best[rows], others[rows].gather(1, drawn)], 1)
        own_rows = passages.apply(near.take(near.places[rows].gather(1, picked).flatten()))
        own_target, target = near.scores[rows].gather(1, picked), z[rows][:, common]
        mapped = x[rows] @ g.T + bias
        own = torch.einsum("qr,qkr->qk", mapped, (own_rows @ h.T).view(*picked.shape, -1))
        scores = torch.cat([own, mapped @ (y[common] @ h.T).T], 1)
        target = torch.cat([own_target, target], 1)
        loss = _divergence(scores, target) + _POINTWISE * _apart(scores, target)
        step(loss + _NEAR_POINTWISE * _apart(own, own_target))


def _stepping(parameters: list[Tensor], rate: float, steps: int) -> Callable[[Tensor], None]:
    """Takes one of so many steps of Adam down a loss, at a rate that falls to 0."""
    optimizer = torch.optim.Adam(parameters, lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    def step(loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()

    return step


def _divergence(scores: Tensor, target: Tensor) -> Tensor:
    return functional.kl_div(scores.log_softmax(1), target.log_softmax(1), log_target=True, reduction="batchmean")


def _apart(scores: Tensor, target: Tensor) -> Tensor:
    """The mean square of what they differ by, less each query's mean."""
    return (scores - target - (scores - target).mean(1, keepdim=True)).square().mean()
