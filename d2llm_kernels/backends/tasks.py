"""Rows of several tasks on kernels that know one branch at a time.

The branches of all tasks are stacked (``branch.Branch``). Where the tasks lie on the CPU the rows of each are taken
apart, so that every row goes through its own branch alone. On a device the host would have to wait for how many there
are; there every branch sees all rows and the right result is selected, as it is while a graph is compiled. Triton's
kernels do better than either and look up the branch of each row.
"""

from collections.abc import Callable, Sequence
from functools import reduce

import torch
from torch import Tensor

from d2llm_kernels.backends.protocol import OneBranch
from d2llm_kernels.branch import Branch
from d2llm_kernels.tensors import promotion, unwanted


class Rows:
    """The rows of each task, and how results for them come together again."""

    def __init__(self, task: Tensor, branches: int) -> None:
        self.apart = task.device.type == "cpu" and not torch.compiler.is_compiling()
        task = task.clamp(0, branches - 1)
        if self.apart:
            order = torch.argsort(task, stable=True)
            self.here = list(order.split(torch.bincount(task, minlength=branches).tolist()))
            self.back = torch.argsort(order)
        else:
            self.here = [task == number for number in range(branches)]

    def of(self, number: int, rows: Tensor) -> Tensor:
        """What the branch of a task gets of ``rows``."""
        return rows[self.here[number]] if self.apart else rows

    def slopes(self, number: int, rows: Tensor) -> Tensor:
        """``of`` for the gradients of results, 0 at rows of other tasks."""
        return self.of(number, rows) if self.apart else rows.where(self._like(number, rows), 0)

    def chosen(self, results: Sequence[Tensor]) -> Tensor:
        """The result of each row, from those of all branches."""
        if self.apart:
            return torch.cat(list(results))[self.back]
        merged = results[0]
        for number, result in enumerate(results[1:], 1):
            merged = torch.where(self._like(number, result), result, merged)
        return merged

    def gradient(self, results: Sequence[Tensor]) -> Tensor:
        """The gradient of rows, from those that all branches have for what ``of`` gave them."""
        return self.chosen(results) if self.apart else total(results)

    def _like(self, number: int, rows: Tensor) -> Tensor:
        return self.here[number].view(-1, *[1] * (rows.dim() - 1))


def per_task(
    task: Tensor | None, branch: Branch, run: Callable[..., tuple[Tensor, ...]], *rows: Tensor
) -> tuple[Tensor, ...]:
    """Results of ``run(*rows, branch)`` for the rows of each task, in the order of the rows; without tasks, of all."""
    if task is None:
        return run(*rows, branch)
    numbers = range(len(branch.weight))
    split = Rows(task, len(numbers))
    # A branch without rows runs too: its weights get gradients of 0, which data-parallel training waits for.
    parts = [run(*(split.of(number, part) for part in rows), branch.of(number)) for number in numbers]
    return tuple(map(split.chosen, zip(*parts, strict=True)))


def total(parts: Sequence[Tensor]) -> Tensor:
    """The sum of gradients."""
    return reduce(torch.add, parts)


class PerTask:
    """Kernels that take one branch, with a task for each row besides: ``backends.protocol.Interaction``."""

    def __init__(self, kernels: OneBranch) -> None:
        self.kernels = kernels

    def iem_scores(self, a: Tensor, b: Tensor, branch: Branch, task: Tensor | None) -> Tensor:
        def run(rows: Tensor, branch: Branch) -> tuple[Tensor]:
            return (self.kernels.iem_scores(rows, b, branch),)

        return per_task(task, branch, run, a)[0]

    def iem_pairs(
        self, a: Tensor, b: Tensor, branch: Branch, task: Tensor | None, return_features: bool
    ) -> tuple[Tensor, Tensor]:
        def run(left: Tensor, right: Tensor, branch: Branch) -> tuple[Tensor, ...]:
            out = self.kernels.iem_pairs(left, right, branch, return_features)
            return out if return_features else out[:1]

        z, *features = per_task(task, branch, run, a, b)
        return z, features[0] if features else a.new_empty(0, a.shape[1], dtype=promotion(a, b, branch.weight))

    def iem_topk(self, a: Tensor, b: Tensor, branch: Branch, task: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
        def run(rows: Tensor, branch: Branch) -> tuple[Tensor, ...]:
            return self.kernels.iem_topk(rows, b, branch, k)

        values, indices = per_task(task, branch, run, a)
        return values, indices

    def iem_scores_backward(
        self, dz: Tensor, a: Tensor, b: Tensor, branch: Branch, task: Tensor | None, wanted: Sequence[bool]
    ) -> tuple[Tensor, ...]:
        if task is None:
            return self.kernels.iem_scores_backward(dz, a, b, branch, wanted)
        rows = Rows(task, len(branch.weight))
        found = [
            self.kernels.iem_scores_backward(rows.slopes(number, dz), rows.of(number, a), b, branch.of(number), wanted)
            for number in range(len(branch.weight))
        ]
        da, db, *weights = zip(*found, strict=True)
        inputs = (rows.gradient(da), total(db)) if wanted[0] else unwanted(a, b)
        return *inputs, *_weights(weights, branch, wanted)

    def iem_pairs_backward(
        self,
        dz: Tensor,
        dfeatures: Tensor | None,
        a: Tensor,
        b: Tensor,
        branch: Branch,
        task: Tensor | None,
        wanted: Sequence[bool],
    ) -> tuple[Tensor, ...]:
        if task is None:
            return self.kernels.iem_pairs_backward(dz, dfeatures, a, b, branch, wanted)
        rows = Rows(task, len(branch.weight))
        found = [
            self.kernels.iem_pairs_backward(
                rows.slopes(number, dz),
                None if dfeatures is None else rows.slopes(number, dfeatures),
                rows.of(number, a),
                rows.of(number, b),
                branch.of(number),
                wanted,
            )
            for number in range(len(branch.weight))
        ]
        da, db, *weights = zip(*found, strict=True)
        inputs = (rows.gradient(da), rows.gradient(db)) if wanted[0] else unwanted(a, b)
        return *inputs, *_weights(weights, branch, wanted)


def _weights(found: Sequence[Sequence[Tensor]], branch: Branch, wanted: Sequence[bool]) -> tuple[Tensor, ...]:
    """Gradients of the stacked branches, from those of each."""
    if not wanted[1]:
        return unwanted(*branch)
    weight, bias, out_weight, out_bias = found
    return torch.stack(list(weight)), torch.stack(list(bias)), total(out_weight), total(out_bias)
