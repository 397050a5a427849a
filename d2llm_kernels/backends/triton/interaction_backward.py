"""Interaction scores, backward, in tiles: no tensor of the size of all pairs times F, no float atomic.

The three kernels of ``gpu.interaction``: slopes, inputs and weights.
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from d2llm_kernels.backends.gpu.interaction import PROGRAMS, Pairs, pairs_backward, scores_backward
from d2llm_kernels.backends.triton import table
from d2llm_kernels.backends.triton.interaction import branch, hidden, holds, known_task, pair_rows, ready, row_tasks
from d2llm_kernels.backends.triton.language import below, dot, operand, relu, store
from d2llm_kernels.branch import Branch
from d2llm_kernels.tensors import accumulate_dtype, promotion

# Tasks that are looked at together for the blocks that hold one.
_SCAN = tl.constexpr(256)


@triton.jit(
    do_not_specialize=("added", "count", "passages", "dz_stride"), do_not_specialize_on_alignment=("task", "dz")
)
def slopes_kernel(
    a,
    b,
    weight,
    bias,
    out_weight,
    task,
    dz,
    dfeatures,
    dpre,
    sums,
    added,
    count,
    passages,
    a_stride,
    b_stride,
    weight_stride,
    dz_stride,
    WIDTH: tl.constexpr,
    DTYPE: tl.constexpr,
    SUM: tl.constexpr,
    PRECISION: tl.constexpr,
    TASKS: tl.constexpr,
    PAIRS: tl.constexpr,
    FEATURES: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """dpre (pairs, F) as an operand, and rows of 0 after it up to a multiple of ROWS.

    The tile's column sums for bias and for out_weight go to sums (tiles, 2, F) in SUM, or with TASKS, each a program of
    axis 2, (tiles, 2, TASKS, F): added to what is there where ``added`` is not 0.
    """
    tile = tl.program_id(0).to(tl.int64)
    pairs = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    first = tl.program_id(1) * BLOCK_N
    n = first + tl.arange(0, BLOCK_N)
    known = below(n, WIDTH, BLOCK_N)
    BRANCHES: tl.constexpr = TASKS if TASKS > 0 else 1
    sums += tile * 2 * BRANCHES * WIDTH
    if TASKS > 0:
        number = tl.program_id(2)
        sums += number * WIDTH
        if not holds(row_tasks(task, pairs, count, passages, TASKS, PAIRS), number):
            nothing = tl.zeros((BLOCK_N,), SUM)
            _add(sums + n, nothing, known, added)
            _add(sums + BRANCHES * WIDTH + n, nothing, known, added)
            return
        weight += number.to(tl.int64) * WIDTH * WIDTH
        bias += number * WIDTH
    left, right = pair_rows(a, b, pairs, count, passages, a_stride, b_stride, PAIRS)
    pre = branch(
        left,
        right,
        first,
        weight,
        bias,
        weight_stride,
        WIDTH,
        DTYPE,
        SUM,
        PRECISION,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
    )
    kept, written = pairs < count, pairs < tl.cdiv(count, ROWS) * ROWS
    if TASKS > 0:
        # Looked up again: kept over the product it would not fit the registers.
        mine = row_tasks(task, pairs, count, passages, TASKS, PAIRS) == number
        kept, written = kept & mine, written & mine
    place = pairs if PAIRS else pairs // passages * dz_stride + pairs % passages
    slope = tl.load(dz + place, mask=kept, other=0).to(SUM)
    _add(sums + BRANCHES * WIDTH + n, tl.sum(slope[:, None] * relu(pre), 0), known, added)
    gradient = slope[:, None] * tl.load(out_weight + n, mask=known, other=0).to(SUM)[None, :]
    if FEATURES:
        given = kept[:, None] & known[None, :]
        gradient += tl.load(dfeatures + pairs[:, None] * WIDTH + n[None, :], mask=given, other=0).to(SUM)
    gradient = tl.where((pre > 0) & kept[:, None], gradient, 0.0)
    store(dpre + pairs[:, None] * WIDTH + n[None, :], gradient, written[:, None] & known[None, :])
    _add(sums + n, tl.sum(gradient, 0), known, added)


@triton.jit
def _add(pointer, value, mask, added):
    """Store ``value``, and with it what is there already where ``added`` is not 0."""
    if added != 0:
        value += tl.load(pointer, mask=mask, other=0)
    tl.store(pointer, value, mask=mask)


@triton.jit(do_not_specialize=("added", "queries", "passages", "share"), do_not_specialize_on_alignment=("task",))
def inputs_kernel(
    a,
    b,
    weight,
    task,
    dpre,
    da,
    db,
    added,
    queries,
    passages,
    share,
    a_stride,
    b_stride,
    weight_stride,
    WIDTH: tl.constexpr,
    DTYPE: tl.constexpr,
    SUM: tl.constexpr,
    PRECISION: tl.constexpr,
    TASKS: tl.constexpr,
    PAIRS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A tile of passages and a block of columns against ``share`` queries, one after the other.

    da (queries, tiles, F) and db (programs of axis 2, passages, F) are parts of sums, in SUM; db is added to what is
    there where ``added`` is not 0. For given PAIRS queries is 1 and db (1, pairs, F) is the gradient of a + b itself,
    in its own dtype. With TASKS branches a query's is that of its task; for PAIRS, whose is a pair's own, each is a
    program of axis 2.
    """
    tile, group = tl.program_id(0).to(tl.int64), tl.program_id(2).to(tl.int64)
    j = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = j < passages
    if PAIRS and TASKS > 0:
        number, group = group, tl.zeros_like(group)
        if not holds(row_tasks(task, j, passages, passages, TASKS, PAIRS), number):
            return
        weight += number.to(tl.int64) * WIDTH * WIDTH
    known_k = below(k, WIDTH, BLOCK_N)
    written = inside[:, None] & known_k[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_N), SUM)
    STEPS: tl.constexpr = (WIDTH + BLOCK_K - 1) // BLOCK_K
    dh = tl.zeros((BLOCK_M, BLOCK_N), SUM)
    start = group * share
    # One loop over queries and, inside each, over n: the loads of the next query start before this one is done.
    for turn in range(0, tl.maximum(tl.minimum(share, queries - start), 0) * STEPS):
        i, step = start + turn // STEPS, turn % STEPS
        n = step * BLOCK_K + tl.arange(0, BLOCK_K)
        rows = dpre + (i * passages + j)[:, None] * WIDTH
        known_n = below(n, WIDTH, BLOCK_K)
        slope = tl.load(rows + n[None, :], mask=inside[:, None] & known_n[None, :], other=0)
        known = known_n[:, None] & known_k[None, :]
        matrix = weight
        if TASKS > 0 and not PAIRS:
            matrix += known_task(tl.load(task + i), TASKS).to(tl.int64) * WIDTH * WIDTH
        w = tl.load(matrix + n[:, None] * weight_stride + k[None, :], mask=known, other=0)
        dh = dot(operand(slope, DTYPE), operand(w, DTYPE), dh, PRECISION)
        if not PAIRS:  # noqa: SIM102  the compiler must not see the rest
            if step == STEPS - 1:
                # b is read again for each query: from the cache it costs less than the registers to keep it in.
                right = operand(tl.load(b + j[:, None] * b_stride + k[None, :], mask=written, other=0), DTYPE)
                left = operand(tl.load(a + i * a_stride + k, mask=known_k, other=0)[None, :], DTYPE)
                dh = tl.where(left + right > 0, dh, 0.0)
                tl.store(da + (i * tl.num_programs(0) + tile) * WIDTH + k, tl.sum(dh, 0), mask=known_k)
                total += dh
                dh = tl.zeros((BLOCK_M, BLOCK_N), SUM)
    target = db + (group * passages + j)[:, None] * WIDTH + k[None, :]
    if PAIRS:
        right = operand(tl.load(b + j[:, None] * b_stride + k[None, :], mask=written, other=0), DTYPE)
        left = operand(tl.load(a + j[:, None] * a_stride + k[None, :], mask=written, other=0), DTYPE)
        if TASKS > 0:
            mine = inside & (row_tasks(task, j, passages, passages, TASKS, PAIRS) == number)
            written = mine[:, None] & known_k[None, :]
        store(target, tl.where(left + right > 0, dh, 0.0), written)
    else:
        _add(target, total, written, added)


@triton.jit(do_not_specialize=("added", "count", "passages", "share"), do_not_specialize_on_alignment=("task",))
def weights_kernel(
    a,
    b,
    task,
    dpre,
    dweight,
    added,
    count,
    passages,
    share,
    a_stride,
    b_stride,
    WIDTH: tl.constexpr,
    DTYPE: tl.constexpr,
    SUM: tl.constexpr,
    PRECISION: tl.constexpr,
    TASKS: tl.constexpr,
    PAIRS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """dpreᵀ h of ``share`` blocks of BLOCK_K pairs, in a tile of dweight (programs of axis 2, F, F), in SUM.

    It is added to what is there where ``added`` is not 0. With TASKS a program of axis 2 sees to one task alone, and to
    the blocks from the first to the last that has a pair of it: dweight is (shares, TASKS, F, F).
    """
    n = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    part = tl.program_id(2).to(tl.int64)
    known_n, known_k = below(n, WIDTH, BLOCK_M), below(k, WIDTH, BLOCK_N)
    written = known_n[:, None] & known_k[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_N), SUM)
    BRANCHES: tl.constexpr = TASKS if TASKS > 0 else 1
    number, group = part % BRANCHES, part // BRANCHES
    first, last = group * share, tl.minimum((group + 1) * share, tl.cdiv(count, BLOCK_K))
    if TASKS > 0:
        first, last = _blocks_of(task, number, first, last, count, passages, TASKS, PAIRS, BLOCK_K)
    # dpre is 0 after the last pair, and so no row of it needs a mask.
    for block in range(first, last):
        rows = block * BLOCK_K + tl.arange(0, BLOCK_K)
        left, right = pair_rows(a, b, rows, count, passages, a_stride, b_stride, PAIRS)
        h = hidden(left, right, k, known_k, DTYPE)
        if TASKS > 0:
            mine = row_tasks(task, rows, count, passages, TASKS, PAIRS) == number
            h = tl.where(mine[:, None], h, 0.0)
        slope = tl.load(dpre + rows[:, None] * WIDTH + n[None, :], mask=known_n[None, :], other=0)
        total = dot(tl.trans(operand(slope, DTYPE)), operand(h, DTYPE), total, PRECISION)
    _add(dweight + (part * WIDTH + n)[:, None] * WIDTH + k[None, :], total, written, added)


@triton.jit
def _blocks_of(
    task, number, first, last, count, passages, TASKS: tl.constexpr, PAIRS: tl.constexpr, BLOCK_K: tl.constexpr
):
    """The blocks of pairs from ``first`` to before ``last``, less those at either end without a pair of the task."""
    start, end = first * BLOCK_K, tl.minimum(last * BLOCK_K, count)
    # Rows of the tasks: one a pair, or one for the pairs of a query.
    row, stop = start, end
    if not PAIRS:
        row, stop = start // passages, tl.cdiv(end, passages)
    lowest, highest = stop, row - 1
    for at in range(row, stop, _SCAN):
        rows = at + tl.arange(0, _SCAN)
        known = rows < stop
        here = known & (known_task(tl.load(task + rows, mask=known, other=0), TASKS) == number)
        lowest = tl.minimum(lowest, tl.min(tl.where(here, rows, stop), 0))
        highest = tl.maximum(highest, tl.max(tl.where(here, rows, row - 1), 0))
    low, high = lowest, highest + 1
    if not PAIRS:
        low, high = lowest * passages, (highest + 1) * passages
    return tl.maximum(first, low // BLOCK_K), tl.minimum(last, tl.cdiv(high, BLOCK_K))


class _Kernels:
    """The kernels with the weights and tiles of one call (``gpu.interaction.Kernels``)."""

    def __init__(self, a: Tensor, b: Tensor, branch: Branch, task: Tensor | None) -> None:
        self.arch = table.architecture(a.device)
        self.dtype = promotion(a, b, branch.weight)
        self.elements = table.elements(self.arch, self.dtype)
        self.wide = accumulate_dtype(self.dtype)
        self.width = branch.weight.shape[-1]
        self.tasks = 0 if task is None else branch.weight.shape[0]
        self.branch = branch

    def tiles(self, kernel: str) -> table.Tiles:
        return table.tiles(kernel, self.arch, self.dtype, F=self.width)

    def slopes(self, pairs: Pairs, dz: Tensor, dfeatures: Tensor | None, sums: Tensor | None) -> tuple[Tensor, Tensor]:
        # To tell the rows of one task from others takes registers too.
        wide = dfeatures is None and not self.tasks
        tiles, rows = self.tiles("slopes" if wide else "slopes_features"), self.tiles("weights")["BLOCK_K"]
        padded = triton.cdiv(dz.numel(), rows) * rows
        dpre = dz.new_empty(padded, self.width, dtype=self.dtype)
        tall, wide = triton.cdiv(padded, tiles["BLOCK_M"]), triton.cdiv(self.width, tiles["BLOCK_N"])
        added = sums is not None
        if sums is None:
            sums = dz.new_empty(tall, 2, *self.branch.bias.shape, dtype=self.wide)
        slopes_kernel[(tall, wide, max(1, self.tasks))](
            pairs.a, pairs.b, *self.branch[:3], pairs.task, dz, dfeatures, dpre, sums,
            int(added), dz.numel(), pairs.b.shape[0],
            pairs.a.stride(0), pairs.b.stride(0), self.branch.weight.stride(-2), dz.stride(0),
            WIDTH=self.width, TASKS=self.tasks, PAIRS=pairs.given, FEATURES=dfeatures is not None, ROWS=rows,
            **self.elements, **tiles,
        )  # fmt: skip
        return dpre, sums

    def weights(self, pairs: Pairs, dpre: Tensor, dweight: Tensor | None) -> Tensor:
        tiles, count = self.tiles("weights"), pairs.size()
        tall, wide = triton.cdiv(self.width, tiles["BLOCK_M"]), triton.cdiv(self.width, tiles["BLOCK_N"])
        parts = max(1, PROGRAMS // (tall * wide))
        added = dweight is not None
        if dweight is None:
            dweight = dpre.new_empty(parts, *self.branch.weight.shape, dtype=self.wide)
        share = triton.cdiv(triton.cdiv(count, parts), tiles["BLOCK_K"])
        weights_kernel[(tall, wide, parts * max(1, self.tasks))](
            pairs.a, pairs.b, pairs.task, dpre, dweight, int(added), count, pairs.b.shape[0], share,
            pairs.a.stride(0), pairs.b.stride(0),
            WIDTH=self.width, TASKS=self.tasks, PAIRS=pairs.given, **self.elements, **tiles,
        )  # fmt: skip
        return dweight

    def inputs(self, pairs: Pairs, dpre: Tensor, db: Tensor | None) -> tuple[Tensor | None, Tensor]:
        passages, tiles = pairs.b.shape[0], self.tiles("inputs")
        tall, wide = triton.cdiv(passages, tiles["BLOCK_M"]), triton.cdiv(self.width, tiles["BLOCK_N"])
        queries = 1 if pairs.given else pairs.a.shape[0]
        groups = min(queries, triton.cdiv(PROGRAMS, tall * wide)) if db is None else db.shape[0]
        share = triton.cdiv(queries, groups)
        groups = triton.cdiv(queries, share)
        added = db is not None
        if db is None:
            dtype = self.dtype if pairs.given else self.wide
            db = dpre.new_empty(groups, passages, self.width, dtype=dtype)
        da = None if pairs.given else dpre.new_empty(queries, tall, self.width, dtype=self.wide)
        inputs_kernel[(tall, wide, max(1, self.tasks) if pairs.given else groups)](
            pairs.a, pairs.b, self.branch.weight, pairs.task, dpre, da, db, int(added), queries, passages, share,
            pairs.a.stride(0), pairs.b.stride(0), self.branch.weight.stride(-2),
            WIDTH=self.width, TASKS=self.tasks, PAIRS=pairs.given, **self.elements, **tiles,
        )  # fmt: skip
        return da, db


def iem_scores_backward(
    dz: Tensor, a: Tensor, b: Tensor, branch: Branch, task: Tensor | None, wanted: Sequence[bool]
) -> tuple[Tensor, ...]:
    """Gradients of ``iem_scores`` with respect to a, b and the four tensors of the branch, in that order."""
    dz = dz if dz.stride(-1) == 1 else dz.contiguous()
    a, b, weights, task = ready(a, b, branch, task)
    kernels = _Kernels(a, b, weights, task)
    return scores_backward(kernels, dz, a, b, branch, wanted, task)


def iem_pairs_backward(
    dz: Tensor,
    dfeatures: Tensor | None,
    a: Tensor,
    b: Tensor,
    branch: Branch,
    task: Tensor | None,
    wanted: Sequence[bool],
) -> tuple[Tensor, ...]:
    """Gradients of ``iem_pairs`` with respect to a, b and the four tensors of the branch, in that order."""
    a, b, weights, task = ready(a, b, branch, task)
    kernels = _Kernels(a, b, weights, task)
    return pairs_backward(kernels, dz, dfeatures, a, b, branch, wanted, task)
