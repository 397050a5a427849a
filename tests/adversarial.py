"""Inputs on which ties, zeros and the last bit decide; normal random numbers almost never meet them.

All values are float64 and survive rounding to bfloat16 unless said otherwise, so that ties are ties in every dtype.
"""

import math

import torch
from torch import Tensor

#: What the logits of ``in_batch`` are like.
LOGITS = ("equal", "near", "grid", "powers", "bound", "zero")
#: What the teacher's scores of in-batch passages are like.
JUDGED = ("none", "zero", "few", "ties")
#: What the tokens and queries of ``pool`` are like.
TOKENS = ("equal", "twins", "no query", "grid", "powers")


def grid(generator: torch.Generator, *shape: int, step: float = 1.0, steps: int = 3) -> Tensor:
    """Multiples of ``step`` from -steps to steps: zeros, both signs, many equal."""
    return torch.randint(-steps, steps + 1, shape, generator=generator).double() * step


def powers(generator: torch.Generator, *shape: int, lowest: int = -20, highest: int = 6) -> Tensor:
    """Powers of two of both signs."""
    exponent = torch.randint(lowest, highest + 1, shape, generator=generator).double()
    return exponent.exp2() * (grid(generator, *shape, steps=1) * 2 + 1).sign()


def in_batch(
    batch: int, hard: int, logits: str, judged: str, seed: int = 0
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor | None, Tensor | None]]:
    """z_in_batch and z_hard; s_hard, s_in_batch and duplicates of ``functional.in_batch_terms``.

    Logits of a row are all equal, equal but for the last bits of float32, on a grid, powers of two, at the bound of 40
    where the C++ kernels change their way, or 0. Teacher scores tie, are NaN, or are NaN in a whole row.
    """
    generator = torch.Generator().manual_seed(seed)
    columns = batch + hard
    level = (80 * torch.rand(batch, 1, generator=generator) - 40).bfloat16().double()
    z = {
        "equal": lambda: level.expand(batch, columns),
        "near": lambda: level * (1 + grid(generator, batch, columns, step=2.0**-23)),
        "grid": lambda: grid(generator, batch, columns, step=13 / 32, steps=5),
        "powers": lambda: powers(generator, batch, columns),
        "bound": lambda: grid(generator, batch, columns, step=40, steps=1) + grid(generator, batch, columns, step=0.25),
        "zero": lambda: torch.zeros(batch, columns, dtype=torch.float64),
    }[logits]()
    s_hard = torch.randint(0, 6, (batch, hard), generator=generator).double() / 4
    s_hard[s_hard > 1] = math.nan
    s_hard[1::5] = math.nan
    ties = torch.randint(0, 6, (batch, batch), generator=generator).double() / 4
    ties[ties > 1] = math.nan
    rare = torch.rand(batch, batch, generator=generator) < 1 / (4 * batch)
    s_in_batch = {
        "none": None,
        "zero": torch.zeros_like(ties),
        "few": torch.where(rare, ties, math.nan),
        "ties": ties,
    }[judged]
    # Every third row keeps one column, others all or most.
    duplicates = torch.rand(batch, batch, generator=generator) < 0.2
    duplicates[::3] = torch.arange(batch) != (torch.arange(batch)[::3, None] + 1) % batch
    duplicates[2::3] = False
    z = z.contiguous()
    return (z[:, :batch].clone(), z[:, batch:].clone()), (s_hard, s_in_batch, duplicates)


def pool(batch: int, length: int, dim: int, heads: int, tokens: str, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """x (batch, length, dim), u (heads, dim) and a mask, one-hot in the first row and absent of tokens in the last.

    All tokens of a sequence are equal, each has a twin, all scores are 0, or values are on a grid or powers of two.
    """
    generator = torch.Generator().manual_seed(seed)
    x, u = grid(generator, batch, length, dim, step=0.25), grid(generator, heads, dim, step=0.25)
    if tokens == "equal":
        x = x[:, :1].expand(batch, length, dim).contiguous()
    if tokens == "twins":
        x[:, 1::2] = x[:, : length // 2 * 2 : 2]
    if tokens == "no query":
        u.zero_()
    if tokens == "powers":
        x, u = powers(generator, batch, length, dim, highest=1), powers(generator, heads, dim, highest=-2)
    mask = torch.rand(batch, length, generator=generator) < 0.7
    mask[0] = torch.arange(length) == length // 2
    mask[-1] = batch == 1
    return x, u, mask


def pairs(queries: int, passages: int, hidden: int, seed: int = 0) -> tuple[Tensor, ...]:
    """a, b and the four tensors of a branch of ``functional.iem_scores``, all whole numbers, for ``hidden`` up to 50.

    Sums are exact in float32 in any order, and values of the hidden layers in bfloat16 too. Many of those are 0 before
    the relu, some rows of a are the negative of one of b, rows repeat, and scores tie between rows that differ.
    """
    generator = torch.Generator().manual_seed(seed)
    a, b = grid(generator, queries, hidden, steps=2), grid(generator, passages, hidden, steps=2)
    a[::2] = -b[torch.arange(0, queries, 2) % passages]
    b = b[torch.where(torch.arange(passages) % 3 == 2, torch.arange(passages) // 2, torch.arange(passages))]
    weight, bias = grid(generator, hidden, hidden, steps=1), grid(generator, hidden, steps=3)
    weight[::4], bias[::8] = 0, 0
    return a, b, weight, bias, grid(generator, 1, hidden, steps=2), grid(generator, 1)
