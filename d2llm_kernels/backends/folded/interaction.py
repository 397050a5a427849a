"""Interaction scores from split projections, in plain torch (algebra: docs/algebra.md, section 2).

Pairs are formed tile by tile in two reused buffers of (tile, F), small enough to stay in cache. Neither
the forward nor the backward holds anything of size Nq x Np x F; the largest tensor is (Nq, Np).
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from d2llm_kernels.branch import Branch
from d2llm_kernels.tensors import accumulate_dtype, cast_like, promotion, unwanted

# BLAS treats the last few rows of a matrix with other code than the rest, and rows that begin elsewhere in a line of
# the cache, so the same pair could score a rounding error apart in two places, which would break ties at random.
# Products therefore run on whole groups of rows, apart by whole groups of elements. A BLAS that tells places apart
# nonetheless cannot be helped without a product of our own.
_GROUP = 16


class _Tiles:
    """The two buffers and the accumulators that every tile of one call shares."""

    def __init__(self, a: Tensor, b: Tensor, branch: Branch, rows: int, gradients: bool = False) -> None:
        dtype = promotion(a, b, branch.weight)
        self.wide = accumulate_dtype(dtype)
        self.weight, self.bias = branch.weight.to(dtype), branch.bias.to(dtype)
        self.out_weight, self.out_bias = branch.out_weight.to(self.wide).view(-1), branch.out_bias.to(self.wide)
        width = self.weight.shape[0]
        room = (_whole_groups(rows), _whole_groups(width))
        self.hidden = a.new_zeros(room, dtype=dtype)[:, :width]
        self.pre = a.new_empty(room, dtype=dtype)[:, :width]
        if gradients:
            self.dweight = torch.zeros_like(self.weight, dtype=self.wide)
            self.dbias = torch.zeros_like(self.out_weight)
            self.dout_weight = torch.zeros_like(self.out_weight)

    def features(self, a: Tensor, b: Tensor) -> Tensor:
        """relu(weight relu(a + b) + bias) for a and b that broadcast to n pairs of width F.

        The result has whole groups of rows; those after the first n belong to no pair.
        """
        grid = torch.broadcast_shapes(a.shape, b.shape)
        rows = math.prod(grid[:-1])
        torch.add(a, b, out=self.hidden[:rows].view(grid)).clamp_min_(0)
        hidden, pre = self.hidden[: _whole_groups(rows)], self.pre[: _whole_groups(rows)]
        return torch.addmm(self.bias, hidden, self.weight.T, out=pre).clamp_min_(0)

    def scores(self, features: Tensor) -> Tensor:
        """z of the rows that ``features`` returned, summed in the accumulation dtype."""
        return torch.mv(features.to(self.wide), self.out_weight).add_(self.out_bias)

    def backward(self, dz: Tensor, dfeatures: Tensor | None, features: Tensor, wanted: Sequence[bool]) -> Tensor | None:
        """Add the weight gradients of a tile of n pairs; return the gradient of a + b, (n, F), in the pre buffer."""
        hidden, features = self.hidden[: dz.shape[0]], features[: dz.shape[0]]
        dpre = torch.outer(dz, self.out_weight)
        if dfeatures is not None:
            dpre += dfeatures
        dpre.masked_fill_(features <= 0, 0)
        if wanted[1]:
            self.dout_weight += torch.mv(features.to(self.wide).T, dz)
            self.dbias += dpre.sum(0)
        dpre = dpre.to(self.weight.dtype)
        if wanted[1]:
            self.dweight += dpre.T @ hidden
        if not wanted[0]:
            return None
        return torch.mm(dpre, self.weight, out=features).masked_fill_(hidden <= 0, 0)


def _whole_groups(count: int) -> int:
    return -(-count // _GROUP) * _GROUP


def tile_rows(device: torch.device) -> int:
    """Pairs in a tile: on a CPU two float32 buffers of 256 x 512 fit each core's L2; accelerators want more work."""
    return 256 * torch.get_num_threads() if device.type == "cpu" else 1 << 15


def _grid(queries: int, passages: int, rows: int) -> Iterator[tuple[slice, slice]]:
    """Tiles of at most ``rows`` pairs that cover (queries, passages), passages innermost."""
    wide = max(1, min(passages, rows))
    tall = max(1, rows // wide)
    for i in range(0, queries, tall):
        for j in range(0, passages, wide):
            yield slice(i, min(i + tall, queries)), slice(j, min(j + wide, passages))


def iem_scores(a: Tensor, b: Tensor, branch: Branch) -> Tensor:
    """Forward of ``functional.iem_scores``: (Nq, F), (Np, F) -> (Nq, Np)."""
    rows = min(tile_rows(a.device), max(1, a.shape[0] * b.shape[0]))
    tiles = _Tiles(a, b, branch, rows)
    out = a.new_empty(a.shape[0], b.shape[0], dtype=tiles.wide)
    for i, j in _grid(a.shape[0], b.shape[0], rows):
        height, width = i.stop - i.start, j.stop - j.start
        z = tiles.scores(tiles.features(a[i, None], b[None, j]))
        out[i, j] = z[: height * width].view(height, width)
    return out


def iem_scores_backward(dz: Tensor, a: Tensor, b: Tensor, branch: Branch, wanted: Sequence[bool]) -> tuple[Tensor, ...]:
    """Gradients of ``iem_scores`` with respect to a, b and the four tensors of the branch, in that order."""
    rows = min(tile_rows(a.device), max(1, a.shape[0] * b.shape[0]))
    tiles = _Tiles(a, b, branch, rows, gradients=wanted[1])
    da, db = torch.zeros_like(a, dtype=tiles.wide), torch.zeros_like(b, dtype=tiles.wide)
    dz = dz.to(tiles.wide)
    for i, j in _grid(a.shape[0], b.shape[0], rows):
        features = tiles.features(a[i, None], b[None, j])
        dhidden = tiles.backward(dz[i, j].reshape(-1), None, features, wanted)
        if dhidden is not None:
            dhidden = dhidden.view(i.stop - i.start, j.stop - j.start, -1)
            da[i] += dhidden.sum(1, dtype=tiles.wide)
            db[j] += dhidden.sum(0, dtype=tiles.wide)
    return _gradients(tiles, (da, db), dz, (a, b), branch, wanted)


def iem_pairs(a: Tensor, b: Tensor, branch: Branch, return_features: bool) -> tuple[Tensor, Tensor]:
    """Forward of ``functional.iem_pairs`` on rows: (N, F), (N, F) -> z (N,), features (N, F) or (0, F)."""
    rows = min(tile_rows(a.device), max(1, a.shape[0]))
    tiles = _Tiles(a, b, branch, rows)
    z = a.new_empty(a.shape[0], dtype=tiles.wide)
    kept = tiles.hidden.new_empty(a.shape[0] if return_features else 0, a.shape[1])
    for start in range(0, a.shape[0], rows):
        part = slice(start, start + rows)
        features = tiles.features(a[part], b[part])
        z[part] = tiles.scores(features)[: z[part].shape[0]]
        if return_features:
            kept[part] = features[: z[part].shape[0]]
    return z, kept


def iem_pairs_backward(
    dz: Tensor, dfeatures: Tensor | None, a: Tensor, b: Tensor, branch: Branch, wanted: Sequence[bool]
) -> tuple[Tensor, ...]:
    """Gradients of ``iem_pairs`` with respect to a, b and the four tensors of the branch, in that order."""
    rows = min(tile_rows(a.device), max(1, a.shape[0]))
    tiles = _Tiles(a, b, branch, rows, gradients=wanted[1])
    da = torch.empty_like(a, dtype=tiles.wide, memory_format=torch.contiguous_format)
    dz = dz.to(tiles.wide)
    for start in range(0, a.shape[0], rows):
        part = slice(start, start + rows)
        features = tiles.features(a[part], b[part])
        dhidden = tiles.backward(dz[part], None if dfeatures is None else dfeatures[part], features, wanted)
        if dhidden is not None:
            da[part] = dhidden
    return _gradients(tiles, (da, da.clone()), dz, (a, b), branch, wanted)


def iem_topk(a: Tensor, b: Tensor, branch: Branch, k: int) -> tuple[Tensor, Tensor]:
    """Forward of ``functional.iem_topk``: running best k of each query over blocks of passages.

    A stable sort of [kept so far, new block] keeps the lower index first among equals, because what is
    kept has lower indices than the block and both halves are already in index order among equals.
    """
    queries, block = a.shape[0], max(4 * k, 8 * tile_rows(a.device))
    wide = accumulate_dtype(promotion(a, b, branch.weight))
    values = a.new_empty(queries, 0, dtype=wide)
    indices = torch.empty(queries, 0, dtype=torch.int64, device=a.device)
    for start in range(0, b.shape[0], block):
        scores = iem_scores(a, b[start : start + block], branch)
        scores.masked_fill_(scores.isnan(), -math.inf)
        fresh = torch.arange(start, start + scores.shape[1], device=a.device).expand(queries, -1)
        values, order = torch.cat([values, scores], 1).sort(dim=1, descending=True, stable=True)
        values, order = values[:, :k], order[:, :k]
        indices = torch.cat([indices, fresh], 1).gather(1, order)
    return values.contiguous(), indices


def _gradients(
    tiles: _Tiles,
    sums: tuple[Tensor, Tensor],
    dz: Tensor,
    inputs: tuple[Tensor, Tensor],
    branch: Branch,
    wanted: Sequence[bool],
) -> tuple[Tensor, ...]:
    """The accumulated gradients in the dtypes and shapes of the inputs."""
    found = cast_like(sums, inputs) if wanted[0] else unwanted(*inputs)
    if not wanted[1]:
        return *found, *unwanted(*branch)
    weights = (tiles.dweight, tiles.dbias, tiles.dout_weight.view(1, -1), dz.sum().view(1))
    return *found, *cast_like(weights, branch)
