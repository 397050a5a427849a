"""Where the tokens of a batch are: one description of padded and packed batches for every pooling kernel.

A batch is cut into slots of BLOCK_L tokens that never cross a sequence. Padded, each sequence has the same number of
slots. Packed, sequence b starts at slot cu[b] // BLOCK_L + b: that leaves room for all its tokens wherever its offset
falls, needs no table and no look at the offsets from the host, and wastes at most one empty slot a sequence.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from d2llm_kernels.backends.triton.language import known_multiple
from d2llm_kernels.offsets import rising_offsets

#: Arguments of the pooling kernels that change from batch to batch: no kernel is compiled anew for what they are.
CHANGING = ("sequences", "length", "x_stride_b", "mask_stride_b")
#: How many sequences a kernel looks at in one step when it searches for the owner of a slot.
SEARCH = tl.constexpr(256)


class Batch(NamedTuple):
    """A batch as the kernels see it; ``length`` is L when padded and T when packed."""

    x: Tensor
    mask: Tensor | None
    cu_seqlens: Tensor | None
    sequences: int
    length: int

    @property
    def arguments(self) -> dict[str, object]:
        """What every pooling kernel takes to find the tokens."""
        packed, masked = self.cu_seqlens is not None, self.mask is not None
        return {
            "x": self.x,
            # Without a mask the kernels still compute its address, and never follow it.
            "mask": self.mask if masked else self.x,
            "cu_seqlens": self.cu_seqlens,
            "sequences": self.sequences,
            "length": self.length,
            "x_stride_b": 0 if packed else self.x.stride(0),
            "x_stride_l": self.x.stride(-2),
            "mask_stride_b": self.mask.stride(0) if self.mask is not None else 0,
            "mask_stride_l": self.mask.stride(1) if self.mask is not None else 0,
            "ALIGNED": self.aligned(),
            "PACKED": packed,
            "MASKED": masked,
        }

    @property
    def rows(self) -> int:
        """Number of token rows, padding included."""
        return self.length if self.cu_seqlens is not None else self.sequences * self.length

    def slots(self, block: int) -> int:
        """Number of slots of ``block`` tokens."""
        if self.cu_seqlens is not None:
            return self.length // block + self.sequences
        return self.sequences * triton.cdiv(self.length, block)

    def aligned(self, *others: Tensor) -> bool:
        """Whether all rows, of x and of ``others``, begin at multiples of 16 elements, so that 16 bytes load at once.

        Not left to Triton to find out of each stride: where D is odd, that of a sequence is such a multiple for some
        lengths, and a kernel would be compiled for either.
        """
        return all(stride % 16 == 0 for tensor in (self.x, *others) for stride in tensor.stride()[:-1])


def describe(x: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None) -> Batch:
    """The batch of (B, L, D) or packed (T, D) hidden states; copied only where the last dimension is strided.

    Raises:
        ArgumentError: if offsets that lie on the host do not rise from 0 to T.
    """
    x = x if x.stride(-1) == 1 else x.contiguous()
    if cu_seqlens is not None:
        offsets = rising_offsets(cu_seqlens, x)
        return Batch(x, None, offsets, cu_seqlens.shape[0] - 1, x.shape[0])
    if mask is not None and mask.dtype == torch.bool:
        mask = mask.view(torch.uint8)
    return Batch(x, mask, None, x.shape[0], x.shape[1])


@triton.jit
def tokens_of(
    x,
    mask,
    cu_seqlens,
    b,
    length,
    x_stride_b,
    x_stride_l,
    mask_stride_b,
    ALIGNED: tl.constexpr,
    PACKED: tl.constexpr,
):
    """Of sequence ``b``: pointers to its first token and its first mask entry, its first row, its number of tokens."""
    row, count = rows_of(cu_seqlens, b, length, PACKED)
    if PACKED:
        return x + row * x_stride_l, mask, row, count
    b = b.to(tl.int64)
    return x + b * known_multiple(x_stride_b, ALIGNED), mask + b * mask_stride_b, row, count


@triton.jit
def rows_of(cu_seqlens, b, length, PACKED: tl.constexpr):
    """First row (int64) and number of tokens of sequence ``b``."""
    if PACKED:
        start, end = _offset(cu_seqlens, b, True, length), _offset(cu_seqlens, b + 1, True, length)
        return start, (end - start).to(tl.int32)
    return b.to(tl.int64) * length, length


@triton.jit
def first_slot(cu_seqlens, b, known, length, BLOCK_L: tl.constexpr, PACKED: tl.constexpr):
    """First slot of ``b``, a scalar or a block of sequences with mask ``known``; for b = B, the number of slots."""
    if PACKED:
        return (_offset(cu_seqlens, b, known, length) // BLOCK_L).to(tl.int32) + b
    return b * ((length + BLOCK_L - 1) // BLOCK_L)


@triton.jit
def owner(cu_seqlens, slot, sequences, length, BLOCK_L: tl.constexpr, PACKED: tl.constexpr):
    """The sequence that ``slot`` belongs to."""
    if not PACKED:
        return slot // ((length + BLOCK_L - 1) // BLOCK_L)
    count = 0
    for first in range(0, sequences, SEARCH):
        b = first + tl.arange(0, SEARCH)
        known = b < sequences
        starts = first_slot(cu_seqlens, b, known, length, BLOCK_L, PACKED)
        count += tl.sum(((starts <= slot) & known).to(tl.int32), 0)
    return tl.maximum(count - 1, 0)


@triton.jit
def valid_tokens(mask, tokens, count, mask_stride_l, MASKED: tl.constexpr):
    """Which of ``tokens``, positions inside a sequence of ``count`` tokens with its mask at ``mask``, take part."""
    valid = (tokens >= 0) & (tokens < count)
    if MASKED:
        valid = tl.load(mask + tokens.to(tl.int64) * mask_stride_l, mask=valid, other=0) != 0
    return valid


@triton.jit
def _offset(cu_seqlens, b, known, length):
    return tl.minimum(tl.maximum(tl.load(cu_seqlens + b, mask=known, other=0).to(tl.int64), 0), length)
