"""Inner products of rows in int8, exact: all of them, or the rows that have the largest.

The C++ kernels look at each row once and keep no product that cannot be among the largest, so that memory's bandwidth
is the limit (docs/kernels/cpu.md). Elsewhere, on a GPU too, torch multiplies in float32.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from d2llm_kernels import backends, reference
from d2llm_kernels.backends.protocol import Int8
from d2llm_kernels.errors import require, shape
from d2llm_kernels.rough.candidates import Best

# Rows widened at a time: they stay in a core's cache.
_BLOCK = 4096
# What float32 counts to without a gap, in products of two numbers of int8.
_WIDEST = (1 << 24) // (128 * 128)


def products(queries: Tensor, rows: Tensor) -> Tensor:
    """Inner products of (Nq, R) and (n, R), both int8: (Nq, n) float32, which holds them exactly up to R = 1,024.

    Raises:
        ArgumentError: for other dtypes, other shapes, or wider rows.
    """
    _check(queries, rows)
    out = torch.empty(len(queries), len(rows), device=queries.device)
    left = queries.float()
    for first in range(0, len(rows), _BLOCK):
        some = slice(first, first + _BLOCK)
        out[:, some] = left @ rows[some].float().T
    return out


def topk(
    queries: Tensor, chunks: Sequence[Tensor], k: int, kept: Tensor | None = None, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """The rows with the k largest inner products with each query.

    Args:
        queries: (Nq, R) int8, R to 1,024.
        chunks: rows (n, R) int8, on the device of the queries, which count on from chunk to chunk.
        k: how many, between 1 and the number N of all rows.
        kept: (N,) bool, the rows that count; None for all.
        backend: one of ``backends.NAMES``.

    Returns:
        products int32 and numbers of rows int64, both (Nq, k), best first, the lower number first among equals; fewer
        columns where fewer rows count.

    Raises:
        ArgumentError: for other dtypes, other shapes, wider rows, or a k out of range.
        BackendError: if a backend named explicitly is missing.
    """
    total = sum(map(len, chunks))
    require(0 < k <= total, "k", f"between 1 and the number of rows, {total}", k)
    if kept is not None:
        fits = kept.dtype == torch.bool and kept.shape == (total,)
        require(fits, "kept", f"shape ({total},) in bool", f"{shape(kept)} in {backends.type_name(kept.dtype)}")
        k = min(k, int(kept.sum()))
    best, first = Best.of_none(queries.float(), k), 0
    _check(queries, *chunks)
    if k and (kernels := _kernels(backend, queries.device)):
        return kernels.inner_topk(queries, chunks, kept, k)
    for rows in chunks:
        for block in rows.split(_BLOCK) if k and len(rows) else ():
            scores = products(queries, block)
            if kept is not None:
                scores[:, ~kept[first : first + len(block)]] = -torch.inf
            values, numbers = reference.topk(scores, min(k, len(block)))
            best.add(values, numbers + first)
            first += len(block)
    return best.values.to(torch.int32), best.indices


def _kernels(backend: str, device: torch.device) -> Int8 | None:
    """The kernels that serve, None where torch does."""
    # The environment may name a backend for the interaction module that lies on another device than the rows.
    asked = backends.requested(backend)
    if backend == "auto" != asked and backends.unsupported(asked, "iem_topk", device, torch.float32):
        return None
    return backends.named(backends.select("iem_topk", backend, device, torch.float32)).int8()


def _check(queries: Tensor, *chunks: Tensor) -> None:
    fits = queries.dim() == 2 and queries.shape[1] <= _WIDEST
    require(fits, "queries", f"shape (Nq, R), R to {_WIDEST}", shape(queries))
    wanted = queries.shape[1:], torch.int8
    for name, tensor in (("queries", queries), *(("rows", rows) for rows in chunks)):
        # There may be thousands of chunks.
        if (tensor.shape[1:], tensor.dtype) != wanted:
            given = f"shape {shape(tensor)} in {backends.type_name(tensor.dtype)}"
            require(False, name, f"shape (n, {queries.shape[1]}) in int8", given)
