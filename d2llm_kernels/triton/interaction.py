"""What every interaction kernel does first: form a tile of pairs and take it through the branch's square layer.

A tile holds BLOCK_M pairs, numbered row by row through (Nq, Np); pair r joins query r // passages and passage
r % passages. Given pairs are the case in which both are pair r itself. The hidden values relu(a + b) exist only as the
left operand of a matrix product, made in registers anew for every block of output columns: at F = 512 that is a tenth
of the product's own work, and nothing of the size of the pairs is ever written.
"""

import triton
import triton.language as tl

from d2llm_kernels.triton.language import below, dot, operand, relu


@triton.jit
def pair_rows(a, b, pairs, passages, a_stride, b_stride, PAIRS: tl.constexpr):
    """Pointers to the two rows of each of ``pairs`` (int64)."""
    if PAIRS:
        return a + pairs * a_stride, b + pairs * b_stride
    return a + pairs // passages * a_stride, b + pairs % passages * b_stride


@triton.jit
def hidden(left, right, inside, columns, known, DTYPE: tl.constexpr):
    """relu(a + b), (rows, columns), as an operand; 0 where a row is not ``inside`` or a column not ``known``."""
    known = inside[:, None] & known[None, :]
    sum_ = operand(tl.load(left[:, None] + columns[None, :], mask=known, other=0), DTYPE)
    sum_ += operand(tl.load(right[:, None] + columns[None, :], mask=known, other=0), DTYPE)
    return operand(relu(sum_), DTYPE)


@triton.jit
def branch(
    left,
    right,
    inside,
    first,
    weight,
    bias,
    weight_stride,
    WIDTH: tl.constexpr,
    DTYPE: tl.constexpr,
    SUM: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """weight relu(a + b) + bias for output columns ``first`` and on: (BLOCK_M, BLOCK_N) in SUM."""
    n = first + tl.arange(0, BLOCK_N)
    known_n = below(n, WIDTH, BLOCK_N)
    total = tl.zeros((BLOCK_M, BLOCK_N), SUM)
    for start in range(0, WIDTH, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        known_k = below(k, WIDTH, BLOCK_K)
        h = hidden(left, right, inside, k, known_k, DTYPE)
        known = known_n[None, :] & known_k[:, None]
        w = tl.load(weight + n[None, :] * weight_stride + k[:, None], mask=known, other=0)
        total = dot(h, operand(w, DTYPE), total, PRECISION)
    return total + tl.load(bias + n, mask=known_n, other=0).to(SUM)[None, :]
