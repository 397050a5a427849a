"""The two losses over all pairs of a batch, forward and backward (algebra: docs/algebra.md, section 6).

A program owns a row of the scores and walks along its columns, so that no sum crosses programs and none is atomic. The
cross-entropy keeps a running maximum and sum in every lane; they meet once, at the end of the row. The K hard negatives
of the row stay in registers, and each block of columns is compared with all of them: (BLOCK_K, BLOCK_N) triples at a
time, never stored. The backward finds the softmax's denominator again: its row is still in cache when the second walk
begins, and exponentials of large logits would not cancel against a rounded logarithm.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from d2llm_kernels.backends.triton import table
from d2llm_kernels.backends.triton.language import store
from d2llm_kernels.branch import InBatch
from d2llm_kernels.tensors import accumulate_dtype, promotion

# Terms of the series in `_softplus` that reach the rounding error of the dtype: each gives a factor of 9.
_TERMS = {torch.float32: 7, torch.float64: 16}
# What changes from batch to batch, unlike K, or while training: no kernel is compiled anew for what these are.
_CHANGING = ("size", "z_in_batch_stride", "s_in_batch_stride", "duplicates_stride", "sharpness")


@triton.jit
def _row(pointer, duplicates, row, columns, size, DUPLICATES: tl.constexpr, SUM: tl.constexpr):
    """A block of one row's scores, and which of its columns are another query's positive that counts."""
    inside = columns < size
    z = tl.load(pointer + columns, mask=inside, other=0).to(SUM)
    others = inside & (columns != row)
    if DUPLICATES:
        others = others & (tl.load(duplicates + columns, mask=inside, other=0) == 0)
    return z, others


@triton.jit
def _hard(z_hard, s_hard, hard, SUM: tl.constexpr, BLOCK_K: tl.constexpr):
    """The row's hard negatives; one that is absent or not judged gets a teacher probability below all others."""
    h = tl.arange(0, BLOCK_K)
    s = tl.load(s_hard + h, mask=h < hard, other=float("nan")).to(SUM)
    judged = s == s
    z = tl.load(z_hard + h, mask=judged, other=0).to(SUM)
    return z, tl.where(judged, s, float("-inf"))


@triton.jit
def _gap(s_hard, s_in_batch, columns, others, TEACHER: tl.constexpr, SUM: tl.constexpr):
    """max(0, s_ih - s_ie), (BLOCK_K, BLOCK_N); 0 where a triple takes no part."""
    easy = tl.where(others, 0.0, float("inf")).to(SUM)
    if TEACHER:
        s = tl.load(s_in_batch + columns, mask=others, other=0).to(SUM)
        easy = tl.where(others & (s == s), s, easy)
    return tl.maximum(s_hard[:, None] - easy[None, :], 0.0)


@triton.jit
def _running(top, total, x):
    """Maximum and sum of exponentials of what each lane has seen, with x added."""
    higher = tl.maximum(top, x)
    return higher, total * tl.exp(top - higher) + tl.exp(x - higher)


@triton.jit
def _met(top, total, own):
    """Maximum and sum of exponentials of all lanes and of the row's own score."""
    highest = tl.max(top, 0)
    return highest, tl.sum(total * tl.exp(top - highest), 0) + tl.exp(own - highest)


@triton.jit
def _softplus(x, TERMS: tl.constexpr):
    """log(1 + eˣ) without a logarithm, which loses the digits of a small eˣ: log(1 + t) = 2 artanh(t / (2 + t))."""
    t = tl.exp(-tl.abs(x))
    w = t / (2.0 + t)
    square = w * w
    series = square * (1.0 / (2 * TERMS + 1)) + 1.0 / (2 * TERMS - 1)
    for term in tl.static_range(1, TERMS):
        series = series * square + 1.0 / (2 * (TERMS - term) - 1)
    return tl.maximum(x, 0.0) + 2.0 * w * series


@triton.jit
def _sigmoid(x):
    """1 / (1 + e⁻ˣ), of which no exponential can overflow."""
    t = tl.exp(-tl.abs(x))
    return tl.where(x < 0, t, 1.0) / (1.0 + t)


@triton.jit(do_not_specialize=_CHANGING)
def in_batch_forward_kernel(
    z_in_batch,
    z_hard,
    s_hard,
    s_in_batch,
    duplicates,
    cross_entropy,
    pairwise,
    size,
    hard,
    z_in_batch_stride,
    z_hard_stride,
    s_hard_stride,
    s_in_batch_stride,
    duplicates_stride,
    sharpness,
    SUM: tl.constexpr,
    TERMS: tl.constexpr,
    PAIRS: tl.constexpr,
    TEACHER: tl.constexpr,
    DUPLICATES: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """cross_entropy (B,) and pairwise (B,) in SUM; sharpness is 1 / temperature."""
    row = tl.program_id(0).to(tl.int64)
    z_in_batch += row * z_in_batch_stride
    if TEACHER:
        s_in_batch += row * s_in_batch_stride
    if DUPLICATES:
        duplicates += row * duplicates_stride
    if PAIRS:
        zh, sh = _hard(z_hard + row * z_hard_stride, s_hard + row * s_hard_stride, hard, SUM, BLOCK_K)
    own = tl.load(z_in_batch + row).to(SUM) * sharpness
    # The row's own score is the first maximum, so that none is ever -inf.
    top = tl.zeros((BLOCK_N,), SUM) + own
    total = tl.zeros((BLOCK_N,), SUM)
    pairs = tl.zeros((BLOCK_N,), SUM)
    for start in range(0, size, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        z, others = _row(z_in_batch, duplicates, row, columns, size, DUPLICATES, SUM)
        top, total = _running(top, total, tl.where(others, z * sharpness, float("-inf")))
        if PAIRS:
            gap = _gap(sh, s_in_batch, columns, others, TEACHER, SUM)
            below = tl.where(others, z, 0.0)[None, :] - zh[:, None]
            pairs += tl.sum(gap * _softplus(below, TERMS), 0)
    highest, whole = _met(top, total, own)
    tl.store(cross_entropy + row, tl.log(whole) + (highest - own))
    tl.store(pairwise + row, tl.sum(pairs, 0))


@triton.jit(do_not_specialize=_CHANGING)
def in_batch_backward_kernel(
    dcross_entropy,
    dpairwise,
    z_in_batch,
    z_hard,
    s_hard,
    s_in_batch,
    duplicates,
    dz_in_batch,
    dz_hard,
    size,
    hard,
    z_in_batch_stride,
    z_hard_stride,
    s_hard_stride,
    s_in_batch_stride,
    duplicates_stride,
    sharpness,
    SUM: tl.constexpr,
    CROSS: tl.constexpr,
    PAIRS: tl.constexpr,
    TEACHER: tl.constexpr,
    DUPLICATES: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """dz_in_batch (B, B) and, with PAIRS, dz_hard (B, K), each row by the program that owns it."""
    row = tl.program_id(0).to(tl.int64)
    z_in_batch += row * z_in_batch_stride
    dz_in_batch += row * size
    if TEACHER:
        s_in_batch += row * s_in_batch_stride
    if DUPLICATES:
        duplicates += row * duplicates_stride
    if CROSS:
        own = tl.load(z_in_batch + row).to(SUM) * sharpness
        top = tl.zeros((BLOCK_N,), SUM) + own
        total = tl.zeros((BLOCK_N,), SUM)
        for start in range(0, size, BLOCK_N):
            columns = start + tl.arange(0, BLOCK_N)
            z, others = _row(z_in_batch, duplicates, row, columns, size, DUPLICATES, SUM)
            top, total = _running(top, total, tl.where(others, z * sharpness, float("-inf")))
        highest, whole = _met(top, total, own)
        slope = tl.load(dcross_entropy + row).to(SUM) * sharpness
    if PAIRS:
        zh, sh = _hard(z_hard + row * z_hard_stride, s_hard + row * s_hard_stride, hard, SUM, BLOCK_K)
        weight = tl.load(dpairwise + row).to(SUM)
        dhard = tl.zeros((BLOCK_K, BLOCK_N), SUM)
    for start in range(0, size, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        z, others = _row(z_in_batch, duplicates, row, columns, size, DUPLICATES, SUM)
        dz = tl.zeros((BLOCK_N,), SUM)
        if CROSS:
            p = tl.exp(tl.where(others | (columns == row), z * sharpness, float("-inf")) - highest) / whole
            dz += slope * tl.where(columns == row, p - 1.0, p)
        if PAIRS:
            gap = _gap(sh, s_in_batch, columns, others, TEACHER, SUM)
            below = tl.where(others, z, 0.0)[None, :] - zh[:, None]
            dbelow = weight * gap * _sigmoid(below)
            dz += tl.sum(dbelow, 0)
            dhard += dbelow
        store(dz_in_batch + columns, dz, columns < size)
    if PAIRS:
        h = tl.arange(0, BLOCK_K)
        store(dz_hard + row * hard + h, -tl.sum(dhard, 1), h < hard)


class _Call:
    """What both launches share: the inputs with columns next to each other, numbers, dtypes and tiles."""

    def __init__(self, kernel: str, batch: InBatch) -> None:
        z_in_batch, z_hard, s_hard, s_in_batch, duplicates, temperature = batch
        given = (z_in_batch, z_hard, s_hard, s_in_batch, duplicates)
        self.inputs = [t if t is None or t.stride(-1) == 1 else t.contiguous() for t in given]
        strides = (0 if t is None else t.stride(0) for t in self.inputs)
        self.numbers = (z_in_batch.shape[0], z_hard.shape[1], *strides, 1.0 / temperature)
        dtype = promotion(*batch.scores())
        arch = table.architecture(z_in_batch.device)
        self.wide = accumulate_dtype(dtype)
        self.options = {
            "SUM": table.elements(arch, dtype)["SUM"],
            "TEACHER": s_in_batch is not None,
            "DUPLICATES": duplicates is not None,
            **table.tiles(kernel, arch, dtype, K=z_hard.shape[1]),
        }


def in_batch_terms(batch: InBatch) -> tuple[Tensor, Tensor]:
    """Forward of ``functional.in_batch_terms``: cross-entropy and pairwise sums of each row, (B,) each."""
    z_in_batch, z_hard, *_ = batch
    call = _Call("in_batch_forward", batch)
    cross_entropy = z_in_batch.new_empty(z_in_batch.shape[0], dtype=call.wide)
    pairwise = torch.empty_like(cross_entropy)
    in_batch_forward_kernel[(z_in_batch.shape[0],)](
        *call.inputs, cross_entropy, pairwise, *call.numbers,
        TERMS=_TERMS[call.wide], PAIRS=z_hard.shape[1] > 0, **call.options,
    )  # fmt: skip
    return cross_entropy, pairwise


def in_batch_terms_backward(
    dcross_entropy: Tensor | None, dpairwise: Tensor | None, batch: InBatch
) -> tuple[Tensor, Tensor]:
    """Gradients of ``in_batch_terms`` with respect to z_in_batch and z_hard; None stands for a gradient of 0."""
    z_in_batch, z_hard, *_ = batch
    call = _Call("in_batch_backward", batch)
    pairs = dpairwise is not None and z_hard.shape[1] > 0
    dz_in_batch = torch.empty_like(z_in_batch, memory_format=torch.contiguous_format)
    dz_hard = (torch.empty_like if pairs else torch.zeros_like)(z_hard, memory_format=torch.contiguous_format)
    gradients = (None if d is None else d.contiguous() for d in (dcross_entropy, dpairwise))
    in_batch_backward_kernel[(z_in_batch.shape[0],)](
        *gradients, *call.inputs, dz_in_batch, dz_hard, *call.numbers,
        CROSS=dcross_entropy is not None, PAIRS=pairs, **call.options,
    )  # fmt: skip
    return dz_in_batch, dz_hard
