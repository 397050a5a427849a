"""Inputs of the kernels with the right answers beside them, for the report and for the tuner.

The yardstick is the reference in float64 on the very inputs of the kernel. A result passes if its distance to it, as a
share of the yardstick's own norm, is small for the dtype or at most twice that of the reference in the same dtype.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from d2llm_kernels import functional, reference
from d2llm_kernels.ops import attn_pool_backward, iem_pairs_backward, iem_scores_backward

# What rounding of the operands alone explains; more must be what the reference loses too.
LIMITS = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-4, torch.float64: 1e-10}
_FACTOR = 2.0


@dataclass(frozen=True)
class Verdict:
    """The worst of several tensors: its relative error and what is allowed."""

    error: float
    limit: float

    @property
    def passed(self) -> bool:
        """NaN never passes."""
        return self.error <= self.limit


def distance(got: Tensor, exact: Tensor) -> float:
    """‖got - exact‖ / ‖exact‖ over the finite entries; NaN if the infinite ones differ."""
    got, exact = got.detach().double(), exact.detach().double()
    finite = exact.isfinite()
    if got.shape != exact.shape or not torch.equal(got[~finite], exact[~finite]):
        return math.nan
    scale = exact[finite].norm().item()
    return (got[finite] - exact[finite]).norm().item() / (scale or 1.0)


def judge(got: Sequence[Tensor], same: Sequence[Tensor], exact: Sequence[Tensor], dtype: torch.dtype) -> Verdict:
    """Hold ``got`` against ``exact``, with the reference in ``dtype`` (``same``) as the measure of what is allowed."""
    verdicts = []
    for one, two, three in zip(got, same, exact, strict=True):
        verdict = Verdict(distance(one, three), max(LIMITS[dtype], _FACTOR * distance(two, three)))
        if not verdict.passed:
            return verdict
        verdicts.append(verdict)
    return max(verdicts, key=lambda verdict: verdict.error / verdict.limit)


class Pool:
    """A batch to pool: ``kind`` is "whole" (no padding), "masked" (right-padded, ragged) or "packed" (ragged)."""

    def __init__(
        self, device: torch.device, dtype: torch.dtype, batch: int, length: int, width: int, heads: int, kind: str
    ) -> None:
        self.dtype, self.kind = dtype, kind
        generator = torch.Generator().manual_seed(batch + length)
        ragged = torch.randint(1, (2 if kind == "packed" else 1) * length + 1, (batch,), generator=generator)
        self.lengths = torch.full((batch,), length) if kind == "whole" else ragged
        self.mask: Tensor | None = None
        self.cu_seqlens: Tensor | None = None
        shape: tuple[int, ...] = (batch, length, width)
        if kind == "masked":
            self.mask = (torch.arange(length) < self.lengths[:, None]).to(device)
        if kind == "packed":
            self.cu_seqlens = torch.nn.functional.pad(self.lengths.cumsum(0), (1, 0)).int().to(device)
            shape = (int(self.lengths.sum()), width)
        self.x = torch.randn(shape, device=device, dtype=dtype)
        self.u = torch.randn(heads, width, device=device, dtype=dtype) / math.sqrt(width)
        self.dpooled = torch.randn(batch, heads, width, device=device, dtype=dtype)

    @property
    def tokens(self) -> int:
        """Valid tokens."""
        return int(self.lengths.sum())

    def forward(self, backend: str) -> tuple[Tensor, ...]:
        """pooled and lse."""
        return functional.attn_pool(self.x, self.u, self.mask, self.cu_seqlens, backend)

    def backward(self, backend: str) -> tuple[Tensor, ...]:
        """dx and du."""
        return attn_pool_backward(self.dpooled, None, self.x, self.u, self.mask, self.cu_seqlens, backend)

    def check(self, backend: str, gradients: bool) -> Verdict:
        """Judge the forward pass of a backend, or its gradients."""
        got = self.backward(backend) if gradients else self.forward(backend)
        same, exact = (half[2:] if gradients else half[:2] for half in self._answers)
        return judge(got, same, exact, self.dtype)

    @cached_property
    def _answers(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        return self._by_sequence(self.dtype), self._by_sequence(torch.float64)

    def _by_sequence(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """pooled, lse, dx and du of the reference, one sequence at a time so that little memory is needed."""
        u = self.u.to(dtype).requires_grad_()
        dx = torch.zeros_like(self.x, dtype=dtype)
        du = torch.zeros_like(u, dtype=torch.float64)
        outputs, start = [], 0
        for row, length in enumerate(self.lengths.tolist()):
            place = (slice(start, start + length),) if self.kind == "packed" else (row, slice(0, length))
            tokens = self.x[place].to(dtype)[None].requires_grad_()
            pooled, lse = reference.attn_pool(tokens, u)
            dtokens, du_row = torch.autograd.grad(pooled, (tokens, u), self.dpooled[row, None].to(dtype))
            dx[place] = dtokens[0]
            du += du_row
            outputs.append((pooled.detach(), lse.detach()))
            start += length
        pooled, lse = (torch.cat(parts) for parts in zip(*outputs, strict=True))
        return pooled, lse, dx, du


class Interaction:
    """Texts to score: all pairs of ``queries`` and ``passages``, or with ``paired`` the pairs of equal index.

    Checks look at a corner of the pairs, the first and the last rows and columns. For gradients dz is zero elsewhere,
    so that the whole call has the gradients of the corner alone and can be judged.
    """

    _EDGE = 16

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype,
        queries: int,
        passages: int,
        hidden: int,
        paired: bool = False,
        features: bool = False,
    ) -> None:
        self.dtype, self.paired, self.features = dtype, paired, features
        shapes = ((queries, hidden), (passages, hidden), (hidden, hidden), (hidden,), (1, hidden), (1,))
        tensors = [torch.randn(*shape, device=device, dtype=dtype) for shape in shapes]
        for index in (2, 4):
            tensors[index] /= math.sqrt(hidden)
        self.tensors = tuple(tensors)
        self.rows, self.columns = (
            torch.cat([torch.arange(min(edge, size)), torch.arange(min(size, max(edge, size - edge)), size)]).to(device)
            for size, edge in ((queries, self._EDGE), (passages, 16 * self._EDGE))
        )

    def forward(self, backend: str) -> tuple[Tensor, ...]:
        """z, and the features where they are wanted."""
        if self.paired:
            out = functional.iem_pairs(*self.tensors, return_features=self.features, backend=backend)
            return out if isinstance(out, tuple) else (out,)
        return (functional.iem_scores(*self.tensors, backend=backend),)

    def backward(self, backend: str, slopes: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Gradients of the six tensors, given those of the outputs."""
        if self.paired:
            return iem_pairs_backward(slopes[0], slopes[1] if self.features else None, *self.tensors, backend)
        return iem_scores_backward(slopes[0], *self.tensors, backend)

    def slopes(self, corner: bool = False) -> tuple[Tensor, ...]:
        """Random gradients of the outputs; with ``corner`` zero outside it."""
        queries, passages, hidden = self.tensors[0].shape[0], self.tensors[1].shape[0], self.tensors[0].shape[1]
        shape = (queries,) if self.paired else (queries, passages)
        # Scores are float32 whatever the dtype, unless that is float64.
        wide = torch.promote_types(self.dtype, torch.float32)
        made = [torch.randn(shape, device=self.tensors[0].device, dtype=wide)]
        if self.features:
            made.append(torch.randn(queries, hidden, device=self.tensors[0].device, dtype=self.dtype))
        if corner:
            kept = []
            for tensor in made:
                kept.append(torch.zeros_like(tensor))
                kept[-1][self._corner] = tensor[self._corner]
            made = kept
        return tuple(made)

    def check(self, backend: str, gradients: bool) -> Verdict:
        """Judge the forward pass of a backend, or its gradients."""
        if not gradients:
            got = [out[self._corner] for out in self.forward(backend)]
            return judge(got, self._answer(self.dtype)[0], self._answer(torch.float64)[0], self.dtype)
        slopes = self.slopes(corner=True)
        got = list(self.backward(backend, slopes))
        same, exact = (self._answer(dtype, slopes)[1] for dtype in (self.dtype, torch.float64))
        return judge(got, same, exact, self.dtype)

    @property
    def _corner(self) -> tuple[Tensor, ...]:
        return (self.rows,) if self.paired else (self.rows[:, None], self.columns)

    def _answer(self, dtype: torch.dtype, slopes: Sequence[Tensor] = ()) -> tuple[list[Tensor], list[Tensor]]:
        """The reference's outputs at the corner and, given ``slopes``, its gradients of the whole tensors."""
        leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in self.tensors]
        a, b = leaves[0][self.rows], leaves[1][self.rows if self.paired else self.columns]
        if self.paired:
            outputs = list(reference.iem_pairs(a, b, *leaves[2:]))[: 2 if self.features else 1]
        else:
            outputs = [reference.iem_scores(a, b, *leaves[2:])]
        if not slopes:
            return [output.detach() for output in outputs], []
        corner = [slope[self._corner].to(dtype) for slope in slopes]
        return outputs, list(torch.autograd.grad(outputs, leaves, corner))


class TopK:
    """The k best of many passages."""

    # Pairs that the reference scores at a time.
    _PAIRS = 1 << 16

    def __init__(
        self, device: torch.device, dtype: torch.dtype, queries: int, passages: int, hidden: int, k: int
    ) -> None:
        self.problem = Interaction(device, dtype, queries, passages, hidden)
        self.k = k

    def forward(self, backend: str) -> tuple[Tensor, ...]:
        """Values and indices."""
        return functional.iem_topk(*self.problem.tensors, self.k, backend=backend)

    def check(self, backend: str) -> Verdict:
        """Judge the values of the first query, and that no passage left out is better by more than rounding."""
        values, indices = (tensor[0] for tensor in self.forward(backend))
        dtype = self.problem.dtype
        exact, same = self._scores(torch.float64), self._scores(dtype)
        if indices.unique().numel() != self.k or not (values[:-1] >= values[1:]).all():
            return Verdict(math.nan, LIMITS[dtype])
        verdict = judge([values], [same[indices]], [exact[indices]], dtype)
        best = exact.topk(self.k).values
        return max(verdict, judge([exact[indices].sort(descending=True).values], [best], [best], dtype), key=_severity)

    def _scores(self, dtype: torch.dtype) -> Tensor:
        a, b, *weights = self.problem.tensors
        weights = [weight.to(dtype) for weight in weights]
        parts = [reference.iem_scores(a[:1].to(dtype), part.to(dtype), *weights)[0] for part in b.split(self._PAIRS)]
        return torch.cat(parts)


def _severity(verdict: Verdict) -> float:
    return math.inf if math.isnan(verdict.error) else verdict.error / verdict.limit
