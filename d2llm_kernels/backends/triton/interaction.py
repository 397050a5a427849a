"""What every interaction kernel does first: form a tile of pairs and take it through the branch's square layer.

A tile holds BLOCK_M pairs, numbered row by row through (Nq, Np); pair r joins query r // passages and passage
r % passages. Given pairs are the case in which both are pair r itself. The hidden values relu(a + b) exist only as the
left operand of a matrix product, made in registers anew for every block of output columns: at F = 512 that is a tenth
of the product's own work, and nothing of the size of the pairs is ever written.
"""

import triton
import triton.language as tl
from torch import Tensor

from d2llm_kernels.backends.triton.language import below, dot, operand, relu
from d2llm_kernels.branch import Branch


def ready(a: Tensor, b: Tensor, branch: Branch, task: Tensor | None) -> tuple[Tensor, Tensor, Branch, Tensor | None]:
    """The tensors as the kernels read them: rows of a, b and the weight contiguous, the rest wholly so.

    The branches of several tasks are stacked, (T, F, F) and (T, F), and contiguous too.
    """
    a, b, weight = (t if t.stride(-1) == 1 else t.contiguous() for t in (a, b, branch.weight))
    weight = weight if task is None else weight.contiguous()
    branch = Branch(weight, branch.bias.contiguous(), branch.out_weight.reshape(-1).contiguous(), branch.out_bias)
    return a, b, branch, None if task is None else task.contiguous()


@triton.jit
def pair_rows(a, b, pairs, count, passages, a_stride, b_stride, PAIRS: tl.constexpr):
    """Pointers to the two rows of each of ``pairs`` (int64); those from ``count`` on have the rows of the last pair.

    So no load needs a mask for its rows, whose predicates would take registers that the product wants.
    """
    pairs = tl.minimum(pairs, count - 1)
    if PAIRS:
        return a + pairs * a_stride, b + pairs * b_stride
    return a + pairs // passages * a_stride, b + pairs % passages * b_stride


@triton.jit
def row_tasks(task, pairs, count, passages, TASKS: tl.constexpr, PAIRS: tl.constexpr):
    """The task of each of ``pairs``; those from ``count`` on have that of the last pair.

    A kernel that is launched once for each task, as an axis of its grid, leaves rows of other tasks alone, and a tile
    without any of its own altogether: tiles of one task cost one product, and none keeps a second one in registers.
    """
    pairs = tl.minimum(pairs, count - 1)
    return known_task(tl.load(task + (pairs if PAIRS else pairs // passages)), TASKS)


@triton.jit
def holds(tasks, number):
    """Whether any of ``tasks`` is ``number``."""
    return tl.max((tasks == number).to(tl.int32), 0) > 0


@triton.jit
def known_task(task, TASKS: tl.constexpr):
    """The nearest task that has a branch, so that no kernel reads beside the weights."""
    return tl.minimum(tl.maximum(task, 0), TASKS - 1).to(tl.int32)


@triton.jit
def hidden(left, right, columns, known, DTYPE: tl.constexpr):
    """relu(a + b), (rows, columns), as an operand; 0 where a column is not ``known``."""
    sum_ = operand(tl.load(left[:, None] + columns[None, :], mask=known[None, :], other=0), DTYPE)
    sum_ += operand(tl.load(right[:, None] + columns[None, :], mask=known[None, :], other=0), DTYPE)
    return operand(relu(sum_), DTYPE)


@triton.jit
def branch(
    left,
    right,
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
        h = hidden(left, right, k, known_k, DTYPE)
        known = known_n[None, :] & known_k[:, None]
        w = tl.load(weight + n[None, :] * weight_stride + k[:, None], mask=known, other=0)
        total = dot(h, operand(w, DTYPE), total, PRECISION)
    return total + tl.load(bias + n, mask=known_n, other=0).to(SUM)[None, :]
