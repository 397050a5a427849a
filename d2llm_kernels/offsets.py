"""The offsets of packed sequences, cu_seqlens (B + 1,): sequence b has rows cu_seqlens[b] to cu_seqlens[b + 1]."""

from itertools import pairwise

from torch import Tensor

from d2llm_kernels.errors import require


def packed_bounds(cu_seqlens: Tensor, total: int) -> list[tuple[int, int]]:
    """(start, end) of each packed sequence.

    Raises:
        ArgumentError: unless the offsets rise from 0 to ``total`` (equal neighbours are empty sequences).
    """
    offsets: list[int] = cu_seqlens.tolist()
    rising = all(a <= b for a, b in pairwise(offsets))
    require(
        rising and offsets[0] == 0 and offsets[-1] == total,
        "cu_seqlens",
        f"non-decreasing offsets from 0 to {total}",
        offsets if len(offsets) <= 16 else f"{offsets[:8]}...{offsets[-8:]}",
    )
    return list(pairwise(offsets))


def rising_offsets(cu_seqlens: Tensor, x: Tensor) -> Tensor:
    """The offsets of packed x (T, D) beside it, in an order that no kernel loses its way in.

    Offsets on a device are not looked at from the host, which waits for nothing. Should they fall, their running
    maximum still keeps every kernel inside the batch and lets it come to an end. Offsets on the host are checked there
    and copied to a GPU from pinned memory without waiting; a CUDA graph would repeat that copy with the same ones.

    Raises:
        ArgumentError: if offsets that lie on the host do not rise from 0 to T.
    """
    if cu_seqlens.device.type != "cpu":
        return cu_seqlens.to(x.device).cummax(0).values
    packed_bounds(cu_seqlens, x.shape[0])
    cu_seqlens = cu_seqlens.contiguous()
    return cu_seqlens.pin_memory().to(x.device, non_blocking=True) if x.is_cuda else cu_seqlens
