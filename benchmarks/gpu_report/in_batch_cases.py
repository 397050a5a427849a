"""Rows of the losses over all pairs of a batch. The literal form holds several tensors of B x K x B."""

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.gpu_report.case import Call, Case, Prepared, Wrap
from benchmarks.gpu_report.problems import Verdict, judge
from d2llm_kernels import functional, reference

# Rows of the batch that checks use: the reference in float64 then fits beside the row's own tensors.
_CHECKED = 512


def cases(smoke: bool) -> Iterator[Case]:
    """The rows, or a tiny one."""
    if smoke:
        yield _losses(1, 18, 2)
        return
    yield _losses(2, 8192, 8)
    yield _losses(3, 4096, 8)


class _Batch:
    """Scores of a batch with hard negatives, and the teacher's probabilities for all of them."""

    def __init__(self, device: torch.device, size: int, hard: int) -> None:
        self.student = [torch.randn(shape, device=device) for shape in ((size, size), (size, hard))]
        self.teacher = [torch.rand(shape, device=device) for shape in ((size, hard), (size, size))]

    def run(self, backend: str) -> tuple[Tensor, ...]:
        """Both sums of each row, and their gradients."""
        leaves = [tensor.requires_grad_() for tensor in self.student]
        terms = functional.in_batch_terms(*leaves, *self.teacher, backend=backend)
        return (*terms, *torch.autograd.grad([term.sum() for term in terms], leaves))

    def literal(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """The same from the formulas."""
        leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in self.student]
        terms = reference.in_batch_terms(*leaves, *(tensor.to(dtype) for tensor in self.teacher))
        return (*terms, *torch.autograd.grad([term.sum() for term in terms], leaves))


def _losses(priority: int, size: int, hard: int) -> Case:
    def prepare(device: torch.device) -> Prepared:
        batch, small = _Batch(device, size, hard), _Batch(device, min(size, _CHECKED), hard)

        def check(backend: str) -> Verdict:
            exact, same = small.literal(torch.float64), small.literal(torch.float32)
            return judge(small.run(backend), same, exact, torch.float32)

        def literal(wrap: Wrap) -> Call:
            return Call(wrap(lambda: batch.literal(torch.float32)))

        triples = hard * size**2
        return Prepared(
            # A difference, a product and a sum for each triple, forward and backward; exponentials not counted.
            flops=6 * triples,
            # z and s in both passes, dz in one.
            traffic=5 * 4 * size**2,
            kernel=lambda backend: Call(lambda: batch.run(backend)),
            literal=literal,
            check=check,
            # The gap, the margin, its logarithm and their product.
            literal_bytes=4 * 4 * triples,
        )

    return Case("in_batch_terms forward+backward", f"B={size} K={hard}", torch.float32, priority, prepare)
