"""The best passages over chunk after chunk, by a branch that is made ready once.

Passages lie as they are stored. Where they are rounded, to int8 or bfloat16, and a kernel multiplies what they are
rounded to, scores of that kind choose candidates, which are ranked again in full at the end, once for all chunks.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from d2llm_kernels import backends, functional
from d2llm_kernels.branch import Branch
from d2llm_kernels.errors import require, shape
from d2llm_kernels.rough.candidates import Best, candidates, rerank
from d2llm_kernels.rough.rows import Int8Rows, Rows, widened
from d2llm_kernels.rough.taking import Int8Taken, Taken
from d2llm_kernels.rough.taking import widened as widened_of
from d2llm_kernels.tensors import promotion

# Passages that are widened or moved at a time: 32 MB in float32 at F = 512.
_BLOCK = 16384


class Search:
    """One branch of an IEM, packed or rounded once, that ranks projected passages of one dtype.

    Args:
        branch: its weights; later changes of them do not count.
        dtype: of the passages, floating or ``torch.int8``.
        backend: one of ``backends.NAMES``.

    Raises:
        ArgumentError: if the dtype is none of these.
        BackendError: if a backend named explicitly is missing or takes no such tensors.
    """

    def __init__(self, branch: Branch, dtype: torch.dtype, backend: str = "auto") -> None:
        known = dtype.is_floating_point or dtype == torch.int8
        require(known, "dtype", "a floating dtype or torch.int8", backends.type_name(dtype))
        # Whole numbers are scored in float32 at least.
        wide = promotion(*branch, torch.empty(0)) if dtype == torch.int8 else promotion(*branch)
        self._branch = Branch(*(tensor.detach().to(wide, copy=True) for tensor in branch))
        self._dtype, self._backend = dtype, backend
        self._exact = _Scorer(self._branch, wide, backend)
        self._rough = self._rounded()

    def _rounded(self) -> "_Scorer | None":
        """Scores by what passages are rounded to, where that is less than the branch and a kernel multiplies it."""
        weight = self._branch.weight
        if self._dtype == torch.int8:
            scorer = _Scorer(self._branch, torch.int8, self._backend)
            return None if scorer.own is None else scorer
        if self._dtype != torch.bfloat16 or weight.dtype == torch.bfloat16:
            return None
        requested = backends.requested(self._backend)
        if requested != "auto" and backends.unsupported(requested, "iem_topk", weight.device, torch.bfloat16):
            return None
        scorer = _Scorer(Branch(*(tensor.bfloat16() for tensor in self._branch)), torch.bfloat16, self._backend)
        return scorer if scorer.backend.kernels else None

    @torch.no_grad()
    def topk(self, a: Tensor, chunks: Sequence[Rows], k: int) -> tuple[Tensor, Tensor]:
        """The k best passages of each query over all chunks.

        Args:
            a: (Nq, F) from ``IEM.project_queries``, on the device of the branch.
            chunks: projected passages, on any device; those with candidates are looked at twice.
            k: how many, between 1 and the number of all passages.

        Returns:
            values (Nq, k), float32 or float64, and indices (Nq, k) int64, which count on from chunk to chunk, best
            first, the lower index first among equals; on the device of the branch. NaN counts, and is returned, as
            -inf. A rounded passage is missed only if max(4 k, k + 128) others look better by rounded scores.

        Raises:
            ArgumentError: on shapes or dtypes that do not fit, or k outside 1..Np.
        """
        self._check(a)
        require(k > 0, "k", "between 1 and the number of passages", k)
        sizes = [len(rows) for rows in chunks]
        require(k <= sum(sizes), "k", f"between 1 and the number of passages, {sum(sizes)}", k)
        return self.ranked(a, self.first_look(a, chunks, k), lambda indices: _gather(chunks, sizes, indices), k)

    @torch.no_grad()
    def first_look(self, a: Tensor, chunks: Iterable[Rows], k: int) -> Best:
        """What ``topk`` keeps before it ranks anything in full: by rounded scores more than k, where it rounds.

        Of several lots of chunks, what each keeps makes what all together keep, by ``Best.add`` lot after lot.

        Raises:
            ArgumentError: on shapes or dtypes that do not fit.
        """
        self._check(a)
        scorer, count = (self._exact, k) if self._rough is None else (self._rough, candidates(k))
        best, first = Best.of_none(a := a.detach().to(scorer.branch.weight.dtype), count), 0
        for rows in self._checked(chunks):
            for block in scorer.blocks(rows):
                scorer.add(best, a, block, first)
                first += len(block)
        return best

    @torch.no_grad()
    def ranked(self, a: Tensor, best: Best, gather: Callable[[Tensor], Tensor], k: int) -> tuple[Tensor, Tensor]:
        """The k best of a first look, as ``topk`` returns them; ``gather`` as in ``candidates.rerank``.

        Raises:
            ArgumentError: on a shape of ``a`` that does not fit.
        """
        return (best.values, best.indices) if self._rough is None else self.rerank(a, best.indices, gather, k)

    @torch.no_grad()
    def scores(self, a: Tensor, chunks: Iterable[Rows]) -> Tensor:
        """Scores of every query with every passage, by what ``topk`` looks at first: rounded, where that rounds.

        Args:
            a, chunks: as in ``topk``.

        Returns:
            (Nq, N), N the number of all passages, on the device of the branch.

        Raises:
            ArgumentError: on shapes or dtypes that do not fit.
        """
        self._check(a)
        scorer = self._rough or self._exact
        a = a.detach().to(scorer.branch.weight.dtype)
        parts = [scorer.scores(a, block) for rows in self._checked(chunks) for block in scorer.blocks(rows)]
        return torch.cat(parts, 1) if parts else a.new_empty(len(a), 0)

    @torch.no_grad()
    def scores_of(self, a: Tensor, rows: Taken, *, exact: bool = False) -> Tensor:
        """What ``scores`` gives for one query and rows that were taken out of chunks.

        Args:
            a: (F,). rows: (n, F).
            exact: in full precision instead, as ``rerank`` scores.

        Returns:
            (n,), on the device of the branch.

        Raises:
            ArgumentError: on shapes that do not fit.
        """
        self._check(a[None])
        scorer = self._exact if exact or self._rough is None else self._rough
        a = a[None].detach().to(scorer.branch.weight.dtype)
        if isinstance(rows, Int8Taken) and scorer.dtype == torch.int8:
            assert scorer.own is not None
            return scorer.own.pairs(a + rows.centres, rows.chunk, rows.values, rows.scale)
        wide = widened_of(rows).to(a)
        if scorer.own is not None:
            return scorer.own.pairs(a, torch.zeros(len(wide), dtype=torch.int64), wide, None)
        return scorer.scores(a, wide)[0]

    @torch.no_grad()
    def rerank(self, a: Tensor, found: Tensor, gather: Callable[[Tensor], Tensor], k: int) -> tuple[Tensor, Tensor]:
        """The best k of each query's candidates in full precision, arguments and results as in ``candidates.rerank``.

        Raises:
            ArgumentError: on a shape of ``a`` that does not fit.
        """
        self._check(a)
        return rerank(a.detach().to(self._branch.weight.dtype), self._branch, found, gather, k, self._backend)

    def _check(self, a: Tensor) -> None:
        width = self._branch.weight.shape[1]
        require(a.dim() == 2 and a.shape[1] == width, "a", f"shape (Nq, {width})", shape(a))

    def _checked(self, chunks: Iterable[Rows]) -> Iterator[Rows]:
        width = self._branch.weight.shape[1]
        for number, rows in enumerate(chunks):
            name = f"chunks[{number}]"
            require(rows.dtype == self._dtype, name, backends.type_name(self._dtype), backends.type_name(rows.dtype))
            require(rows.shape[1:] == (width,), name, f"shape (N, {width})", tuple(rows.shape))
            yield rows


class _Scorer:
    """Scores in one dtype, and the best passages by them."""

    def __init__(self, branch: Branch, dtype: torch.dtype, backend: str) -> None:
        self.branch, self.dtype, self._requested = branch, dtype, backend
        chosen = backends.select("iem_topk", backend, branch.weight.device, branch.weight.dtype)
        self.backend = backends.named(chosen)
        self.own = self.backend.search(branch, dtype)

    def blocks(self, rows: Rows) -> Iterator[Rows]:
        """The rows as ``topk`` takes them; a copy, block by block, only of what is not so already."""
        device = self.branch.weight.device
        if rows.dtype == self.dtype and rows.device == device:
            yield from (rows,) if len(rows) else ()
            return
        for start in range(0, len(rows), _BLOCK):
            block = rows[start : start + _BLOCK].to(device)
            yield block if block.dtype == self.dtype else widened(block).to(self.dtype)

    def scores(self, a: Tensor, rows: Rows) -> Tensor:
        """Scores (Nq, n) of a block."""
        if isinstance(rows, Int8Rows):
            kernels = self.backend.int8()
            assert kernels is not None
            return kernels.iem_scores_int8(a + rows.centre, rows.values, rows.scale, self.branch)
        return functional.iem_scores(a, rows, *self.branch, self._requested)

    def add(self, best: Best, a: Tensor, rows: Rows, first: int) -> None:
        """Take a block into account, whose passages count from ``first``."""
        if self.own is None:
            assert isinstance(rows, Tensor)
            values, indices = functional.iem_topk(a, rows, *self.branch, min(best.k, len(rows)), self._requested)
            best.add(values, indices + first)
            return
        found = best.k, best.values, best.indices, first
        if isinstance(rows, Int8Rows):
            best.values, best.indices = self.own.topk(a + rows.centre, rows.values, rows.scale, *found)
        else:
            best.values, best.indices = self.own.topk(a, rows, None, *found)


def _gather(chunks: Sequence[Rows], sizes: Sequence[int], indices: Tensor) -> Tensor:
    """The passages (N, F) of ascending indices, which count on from chunk to chunk, in a floating dtype."""
    indices, parts, first = indices.cpu(), [], 0
    for number, size in enumerate(sizes):
        low, high = torch.searchsorted(indices, torch.tensor([first, first + size])).tolist()
        if low < high:
            rows, here = chunks[number], indices[low:high] - first
            parts.append(widened(rows[here.to(rows.device)]))
        first += size
    return torch.cat(parts)
