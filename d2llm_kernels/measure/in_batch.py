"""Rows of the losses over all pairs of a batch. The literal form holds several tensors of B x K x B."""

import torch
from torch import Tensor

from d2llm_kernels import functional, reference
from d2llm_kernels.measure.case import FOLDED, Call, Case, Prepared, Wrap
from d2llm_kernels.measure.contract import SMALLEST_ROW, Verdict, judge

# Rows of the batch that checks use: the reference in float64 then fits beside the row's own tensors.
_CHECKED = 512
#: What the rows of the two losses are measured by at least, each a problem of its own. Of the cross-entropy the digits
#: beside a softmax's 1 count, of the pairs, all of whose terms have one sign, those of the sum itself.
ROWS = (1.0, SMALLEST_ROW)


class _Batch:
    """Scores of a batch with hard negatives, and the teacher's probabilities for all of them."""

    def __init__(self, device: torch.device, size: int, hard: int) -> None:
        self.z, self.z_hard = (torch.randn(shape, device=device) for shape in ((size, size), (size, hard)))
        self.s, self.s_hard = (torch.rand(shape, device=device) for shape in ((size, size), (size, hard)))

    def run(self, backend: str) -> tuple[Tensor, ...]:
        """Both sums of each row, and their gradients."""
        leaves = (self.z.requires_grad_(), self.z_hard.requires_grad_())
        terms = functional.in_batch_terms(*leaves, self.s_hard, self.s, backend=backend)
        return (*terms, *torch.autograd.grad([term.sum() for term in terms], leaves))

    def literal(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """The same from the formulas."""
        z, z_hard = leaves = [t.detach().to(dtype).requires_grad_() for t in (self.z, self.z_hard)]
        terms = reference.in_batch_terms(z, z_hard, self.s_hard.to(dtype), self.s.to(dtype))
        return (*terms, *torch.autograd.grad([term.sum() for term in terms], leaves))


def losses(size: int, hard: int, priority: int = 2, literal: bool = True) -> Case:
    """A row of ``in_batch_terms`` in float32, forward and backward, for B = ``size`` and K = ``hard``."""

    def prepare(device: torch.device) -> Prepared:
        batch, small = _Batch(device, size, hard), _Batch(device, min(size, _CHECKED), hard)

        def check(backend: str) -> Verdict:
            exact, same = small.literal(torch.float64), small.literal(torch.float32)
            return judge(small.run(backend), same, exact, torch.float32, rows=(*ROWS, max(ROWS), max(ROWS)))

        def call_literal(wrap: Wrap) -> Call:
            return Call(wrap(lambda: batch.literal(torch.float32)))

        triples = hard * size**2
        return Prepared(
            # Products, sums and quotients of a triple where every gap differs: 25 forward, most of them for a
            # logarithm, and 8 backward. Exponentials are taken once a column and a hard negative.
            flops=33 * triples,
            # z and s in both passes, dz in one.
            traffic=5 * 4 * size**2,
            kernel=lambda backend: Call(lambda: batch.run(backend)),
            literal=call_literal,
            check=check,
            # The gap, the margin, its logarithm and their product.
            literal_bytes=4 * 4 * triples,
        )

    shape = f"B={size} K={hard}"
    # There are no losses in CUDA C++.
    backends = ("triton", "cpu", FOLDED)
    name = "in_batch_terms forward+backward"
    return Case(name, shape, torch.float32, priority, prepare, literal=literal, backends=backends)
