"""The first layer that the interaction module starts from: a frame R whose Σ relu(R (q - p)) follows |q - p|."""

import math

import torch
from torch import Tensor

from d2llm_kernels.errors import require, shape


def frame(rows: int, dim: int, sample: Tensor | None = None) -> Tensor:
    """R (rows, dim) float32, drawn from torch's random state, its rows of length 1 on average.

    Its columns are orthogonal and of one length, so that no direction weighs more than another (independent normal
    rows, which only do so on average, rank worse), and sum to zero, so that one relu does for both signs:
    Σ relu(R v) = Σ |R v| / 2. Where the vectors are too wide for that, ``dim`` >= ``rows``, what is left out is chosen
    by chance or, with a sample, is what varies least: R then keeps the ``rows`` - 1 first principal directions.

    Args:
        rows: at least 2.
        dim: width D.
        sample: (N, D) float vectors like those to be compared, N at least 2.

    Raises:
        ArgumentError: on a sample of another shape or type, or with fewer than two vectors.
    """
    if sample is not None:
        fits = sample.dim() == 2 and len(sample) > 1 and sample.shape[1] == dim and sample.is_floating_point()
        require(fits, "sample", f"floating point vectors (2 or more, {dim})", f"{shape(sample)} {sample.dtype}")
    kept = min(dim, rows - 1)
    draw = torch.randn(rows, kept)
    spread = math.sqrt(rows / kept) * torch.linalg.qr(draw - draw.mean(dim=0)).Q
    return spread if kept == dim else spread @ _directions(kept, dim, sample)


def length_ratio(r: Tensor, sample: Tensor | None = None) -> float:
    """Mean of Σ relu(R v) in units of |v|: over differences of a sample's vectors, or over random v.

    Args:
        r: (rows, D) from :func:`frame`.
        sample: (N, D), the one that ``r`` was drawn with.
    """
    if sample is not None:
        sample = sample.detach().to("cpu", torch.float32)
        differences = sample - sample[torch.randperm(len(sample))]
        length = differences.norm(dim=1).sum().item()
        if length > 0:
            return (differences @ r.T).relu().sum().item() / length
    rows, dim = r.shape
    return rows / math.sqrt(2 * math.pi * dim)


def _directions(count: int, dim: int, sample: Tensor | None) -> Tensor:
    """(count, dim) orthonormal: along which a sample varies most, random ones after the last that it has."""
    found = torch.empty(0, dim)
    if sample is not None:
        sample = sample.detach().to("cpu", torch.float32)
        found = torch.linalg.svd(sample - sample.mean(dim=0), full_matrices=False).Vh[:count]
    others = torch.randn(dim, count - len(found))
    return torch.linalg.qr(torch.cat([found.T, others], dim=1)).Q.T
