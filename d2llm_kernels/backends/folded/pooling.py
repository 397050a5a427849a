"""Attention pooling without keys and values, in plain torch (algebra: docs/algebra.md, section 1).

One sequence at a time, at its own length and from an address of its own: a row of the batch is then read without its
padding, its result cannot depend on its neighbours, and padded and packed calls run the very same arithmetic.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from d2llm_kernels.offsets import packed_bounds
from d2llm_kernels.tensors import accumulate_dtype

# BLAS takes other code for operands that begin elsewhere in a line of the cache, and gives the same sequence other bits
# at another place of the batch. torch begins its own tensors at these bytes.
_ALIGNMENT = 64

# Elements of a token block that is widened to the accumulation dtype at once: 1 MiB in float32.
_BLOCK = 1 << 18


def attn_pool(x: Tensor, u: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor]:
    """Forward of ``functional.attn_pool``: pooled (B, H, D) and lse (B, H). Nothing of size T x D is made."""
    sequences = _sequences(x, mask, cu_seqlens)
    dtype = accumulate_dtype(x.dtype, u.dtype)
    pooled = x.new_zeros(len(sequences), *u.shape, dtype=torch.promote_types(x.dtype, u.dtype))
    lse = x.new_full((len(sequences), u.shape[0]), -math.inf, dtype=dtype)
    u = u.to(dtype)
    for row, (tokens, index) in enumerate(sequences):
        tokens = _placed(tokens, index, u.dtype)
        if tokens.shape[0]:
            scores = _scores(tokens, u)
            weights = torch.softmax(scores, 1)
            # The largest weight is exp(0) over the denominator: no second exponential of the scores is needed.
            lse[row] = scores.amax(1) - weights.amax(1).log()
            pooled[row] = _weighted_sum(weights, tokens)
    return pooled, lse


def attn_pool_backward(
    dpooled: Tensor,
    dlse: Tensor | None,
    x: Tensor,
    u: Tensor,
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    """Gradients of ``attn_pool`` with respect to x and u, each empty, (0,), unless it is ``wanted``.

    The attention weights are made again from x and u. With da = x dP^T and ds = a (da - sum a da + dlse):
    dx = a dP + ds u and du = sum ds x. dx is 0 at masked tokens, whatever x holds there.
    """
    dtype = accumulate_dtype(x.dtype, u.dtype)
    want_x, want_u = wanted
    dx = torch.zeros_like(x, memory_format=torch.contiguous_format) if want_x else None
    heads, wide = u.shape[0], u.to(dtype)
    du = torch.zeros_like(wide) if want_u else None
    sequences = _sequences(x, mask, cu_seqlens)
    targets = sequences if dx is None else _sequences(dx, mask, cu_seqlens)
    for row, (tokens, index) in enumerate(sequences):
        tokens = _placed(tokens, index, dtype)
        if not tokens.shape[0]:
            continue
        sides = torch.cat([wide, dpooled[row].to(dtype)])
        products = _scores(tokens, sides)
        weights, da = torch.softmax(products[:heads], 1), products[heads:]
        slope = da - (weights * da).sum(1, keepdim=True)
        ds = weights * (slope if dlse is None else slope + dlse[row, :, None])
        if du is not None:
            du += _weighted_sum(ds, tokens)
        if dx is None:
            continue
        gradient = torch.cat([ds, weights]).T @ sides
        if index is None:
            targets[row][0].copy_(gradient)
        else:
            targets[row][0][index] = gradient.to(dx.dtype)
    return x.new_empty(0) if dx is None else dx, u.new_empty(0) if du is None else du.to(u.dtype)


def _sequences(x: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None) -> list[tuple[Tensor, Tensor | None]]:
    """A view of each sequence's tokens, with the positions to keep where its mask has holes."""
    if cu_seqlens is not None:
        return [(x[start:end], None) for start, end in packed_bounds(cu_seqlens, x.shape[0])]
    if mask is None or x.shape[1] == 0:
        return [(row, None) for row in x]
    valid = mask.bool()
    first = valid.int().argmax(1).tolist()
    counts = valid.sum(1).tolist()
    last = (valid.shape[1] - valid.flip(1).int().argmax(1)).tolist()
    return [
        (x[i, s : s + n], None) if n == 0 or e - s == n else (x[i], valid[i].nonzero().squeeze(1))
        for i, (s, n, e) in enumerate(zip(first, counts, last, strict=True))
    ]


def _placed(tokens: Tensor, index: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The valid tokens of a sequence, laid out for products in ``dtype`` as if they were a tensor of their own."""
    if index is not None:
        return tokens[index]
    # What is widened is copied block by block as it is.
    if tokens.dtype != dtype or (tokens.is_contiguous() and tokens.data_ptr() % _ALIGNMENT == 0):
        return tokens
    return tokens.clone(memory_format=torch.contiguous_format)


def _blocks(tokens: Tensor, dtype: torch.dtype) -> list[slice]:
    """Row blocks to widen one after the other: the whole sequence where nothing has to be widened."""
    length = tokens.shape[0]
    step = length if tokens.dtype == dtype else max(16, _BLOCK // tokens.shape[1])
    return [slice(start, start + step) for start in range(0, length, step)]


def _scores(tokens: Tensor, u: Tensor) -> Tensor:
    """u tokens^T, (H, n), in the dtype of u."""
    scores = u.new_empty(u.shape[0], tokens.shape[0])
    for rows in _blocks(tokens, u.dtype):
        scores[:, rows] = u @ tokens[rows].to(u.dtype).T
    return scores


def _weighted_sum(weights: Tensor, tokens: Tensor) -> Tensor:
    """weights tokens, (H, D), in the dtype of the weights."""
    blocks = _blocks(tokens, weights.dtype)
    total = weights[:, blocks[0]] @ tokens[blocks[0]].to(weights.dtype)
    for rows in blocks[1:]:
        total.addmm_(weights[:, rows], tokens[rows].to(weights.dtype))
    return total
