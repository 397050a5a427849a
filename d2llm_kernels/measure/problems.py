"""Inputs of the kernels with the right answers beside them, for the report and for the tuner.

Results are held to the contract of the kernels (``contract.py``); what needs other treatment has it here.
"""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from d2llm_kernels import functional, reference
from d2llm_kernels.branch import Branch
from d2llm_kernels.measure.contract import Verdict, agreement, distance, judge, worst
from d2llm_kernels.operators.interaction import iem_pairs_backward, iem_scores_backward
from d2llm_kernels.operators.pooling import attn_pool_backward
from d2llm_kernels.rough import fp8, int8

# Sums of e4m3 products may be kept in fewer bits than float32 has.
_FP8_LIMIT = 1e-2
# Passages that are handled at a time where all of them could be too many.
_BLOCK = 1 << 16


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
        return attn_pool_backward(self.dpooled, None, self.x, self.u, self.mask, self.cu_seqlens, backend, (True, True))

    def check(self, backend: str, gradients: bool) -> Verdict:
        """Judge the forward pass of a backend, or its gradients."""
        got = self.backward(backend) if gradients else self.forward(backend)
        same, exact = (half[2:] if gradients else half[:2] for half in self._answers)
        return judge(got, same, exact, self.dtype, terms=max(self.x.shape[-1], int(self.lengths.max())))

    @cached_property
    def _answers(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        return self._by_sequence(self.dtype), self._by_sequence(torch.float64)

    def _by_sequence(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """pooled, lse, dx and du of the reference, one sequence at a time so that little memory is needed."""
        u = self.u.to(dtype).requires_grad_()
        dx = torch.zeros_like(self.x, dtype=dtype)
        # A sum over all texts is taken in the accumulator of a kernel, and rounded once.
        du = torch.zeros_like(u, dtype=torch.promote_types(dtype, torch.float32))
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
        return pooled, lse, dx, du.to(dtype)


class Texts(NamedTuple):
    """Projected queries and passages, and the weights of a branch."""

    a: Tensor
    b: Tensor
    weight: Tensor
    bias: Tensor
    out_weight: Tensor
    out_bias: Tensor

    @property
    def branch(self) -> Branch:
        """The weights."""
        return Branch(*self[2:])

    def to(self, dtype: torch.dtype) -> "Texts":
        """All of them in a dtype, detached."""
        return Texts(*(tensor.detach().to(dtype) for tensor in self))


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
        self.dtype, self.hidden, self.paired, self.features = dtype, hidden, paired, features
        shapes = ((queries, hidden), (passages, hidden), (hidden, hidden), (hidden,), (1, hidden), (1,))
        tensors = [torch.randn(*shape, device=device, dtype=dtype) for shape in shapes]
        for index in (2, 4):
            tensors[index] /= math.sqrt(hidden)
        self.tensors = Texts(*tensors)
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

    def in_fp8(self, backend: str = "auto") -> Tensor:
        """z with the square layer in e4m3."""
        weight, scale = self.fp8_weight
        return fp8.iem_scores(self.tensors.a, self.tensors.b, weight, scale, *self.tensors.branch[1:], backend=backend)

    @cached_property
    def fp8_weight(self) -> tuple[Tensor, Tensor]:
        """The weight in e4m3, and its scales."""
        return fp8.quantize(self.tensors.branch[0])

    def check_fp8(self) -> Verdict:
        """Judge ``in_fp8`` at the corner by the same formula in plain torch: sums may be shorter than float32."""
        a, b = self.tensors.a[self.rows], self.tensors.b[self.columns]
        plain = fp8.iem_scores(a, b, *self.fp8_weight, *self.tensors.branch[1:], backend="folded")
        return Verdict(distance(self.in_fp8()[self._corner], plain), _FP8_LIMIT)

    def backward(self, backend: str, slopes: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Gradients of the six tensors, given those of the outputs."""
        if self.paired:
            features = slopes[1] if self.features else None
            return iem_pairs_backward(slopes[0], features, *self.tensors, None, backend, (True, True))
        return iem_scores_backward(slopes[0], *self.tensors, None, backend, (True, True))

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
        slopes = self.slopes(corner=True) if gradients else ()
        got = self.backward(backend, slopes) if gradients else [out[self._corner] for out in self.forward(backend)]
        same, exact = (self._answer(dtype, slopes)[gradients] for dtype in (self.dtype, torch.float64))
        return judge(got, same, exact, self.dtype, terms=self.hidden)

    @property
    def _corner(self) -> tuple[Tensor, ...]:
        return (self.rows,) if self.paired else (self.rows[:, None], self.columns)

    def _answer(self, dtype: torch.dtype, slopes: Sequence[Tensor] = ()) -> tuple[list[Tensor], list[Tensor]]:
        """The reference's outputs at the corner and, given ``slopes``, its gradients of the whole tensors."""
        leaves = self.tensors.to(dtype)
        for leaf in leaves:
            leaf.requires_grad_()
        a, b = leaves.a[self.rows], leaves.b[self.rows if self.paired else self.columns]
        if self.paired:
            outputs = list(reference.iem_pairs(a, b, *leaves.branch))[: 2 if self.features else 1]
        else:
            outputs = [reference.iem_scores(a, b, *leaves.branch)]
        if not slopes:
            return [output.detach() for output in outputs], []
        corner = [slope[self._corner].to(dtype) for slope in slopes]
        return outputs, list(torch.autograd.grad(outputs, leaves, corner))


class TopK:
    """The k best of many passages. Checks take only the first passages, as many as the reference has time for."""

    _CHECKED = 1 << 17

    def __init__(
        self, device: torch.device, dtype: torch.dtype, queries: int, passages: int, hidden: int, k: int
    ) -> None:
        self.problem = Interaction(device, dtype, queries, passages, hidden)
        self.k = k

    def forward(self, backend: str) -> tuple[Tensor, ...]:
        """Values and indices."""
        return functional.iem_topk(*self.problem.tensors, self.k, backend=backend)

    def peer(self, name: str) -> object:
        """All scores, for "iem_scores"."""
        assert name == "iem_scores"
        return functional.iem_scores(*self.problem.tensors)

    def literal_texts(self, passages: int) -> Texts:
        """a, the first passages and the weights for the literal form."""
        texts = self.problem.tensors
        return texts._replace(b=texts.b[:passages])

    def check(self, name: str) -> Verdict:
        """Judge the values of the first query, and that no passage left out is better by more than rounding."""
        texts = self._first()
        if name == "iem_scores":
            exact, same = self._both()
            got = functional.iem_scores(texts.a[:1], texts.b, *texts.branch)[0]
            return judge([got], [same], [exact], texts.b.dtype, terms=self.problem.hidden)
        values, indices = functional.iem_topk(*texts, self.k, backend=name)
        return best_of(values[0], indices[0], *self._both(), texts.b.dtype, self.problem.hidden)

    def _first(self) -> Texts:
        return self.literal_texts(self._CHECKED)

    def _both(self) -> tuple[Tensor, Tensor]:
        """Scores of the first query in float64 and in the dtype of the texts, by the literal formula."""
        texts = self._first()
        return reference_scores(texts.to(torch.float64)), reference_scores(texts)


class BytesTopK(TopK):
    """The k best of passages stored in int8, among as many in bfloat16 as a peer; queries and weights are float32."""

    def __init__(
        self, device: torch.device, dtype: torch.dtype, queries: int, passages: int, hidden: int, k: int
    ) -> None:
        super().__init__(device, torch.bfloat16, queries, passages, hidden, k)
        # A block at a time: in float32 all of them could be more than there is room for.
        parts = [int8.quantize(part) for part in self.problem.tensors.b.split(_BLOCK)]
        self.stored, self.scale = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        self._query = self.problem.tensors.a.float()
        self._branch = Branch(*(weight.float() for weight in self.problem.tensors.branch))

    def forward(self, backend: str) -> tuple[Tensor, ...]:
        return self._topk(len(self.stored), backend)

    def peer(self, name: str) -> object:
        """The k best with passages, queries and weights in bfloat16, for "bfloat16"."""
        assert name == "bfloat16"
        return super().forward("auto")

    def literal_texts(self, passages: int) -> Texts:
        rows = self.stored[:passages].float() * self.scale[:passages, None]
        return self.problem.tensors._replace(b=rows).to(torch.float32)

    def check(self, name: str) -> Verdict:
        """As for floats, against the scores of what is stored: candidates are chosen in 8 bits, values are exact."""
        if name == "bfloat16":
            texts = TopK.literal_texts(self, self._CHECKED)
            values, indices = functional.iem_topk(*texts, self.k)
            exact, same = reference_scores(texts.to(torch.float64)), reference_scores(texts)
            return best_of(values[0], indices[0], exact, same, texts.b.dtype, self.problem.hidden)
        values, indices = self._topk(self._CHECKED, name)
        return best_of(values[0], indices[0], *self._both(), torch.float32, self.problem.hidden)

    def _topk(self, passages: int, backend: str) -> tuple[Tensor, Tensor]:
        stored, scale = self.stored[:passages], self.scale[:passages]
        return int8.iem_topk(self._query, stored, scale, *self._branch, self.k, backend)


def reference_scores(texts: Texts) -> Tensor:
    """Scores (Np,) of the first query by the literal formula, a block of passages at a time."""
    parts = [reference.iem_scores(texts.a[:1], part, *texts.branch)[0] for part in texts.b.split(_BLOCK)]
    return torch.cat(parts)


def best_of(values: Tensor, indices: Tensor, exact: Tensor, same: Tensor, dtype: torch.dtype, hidden: int) -> Verdict:
    """Judge the k best (values and indices) of one query's scores, given them all in float64 and in ``dtype``."""
    k = len(values)
    if indices.unique().numel() != k or not (values[:-1] >= values[1:]).all():
        return Verdict(math.nan, 0.0, "indices repeat or values are not in order")
    # Which of two nearly equal passages is kept, rounding decides: the exact scores of a choice agree with the best.
    chosen = agreement(exact[indices].sort(descending=True).values, exact.topk(k).values, dtype)
    return worst((judge([values], [same[indices]], [exact[indices]], dtype, terms=hidden), chosen))
