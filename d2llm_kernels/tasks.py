"""Rows of several tasks on kernels that know one branch at a time.

The branches of all tasks are stacked: weight (T, F, F) and bias (T, F), with one out_weight and out_bias for all. Where
the tasks lie on the CPU the rows of each are taken apart, so that every row goes through its own branch alone. On a
device the host would have to wait for how many there are; there every branch sees all rows and the right result is
selected, as it is while a graph is compiled. Triton's kernels do better than either and look up the branch of each row.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, cast

import torch
from torch import Tensor

from d2llm_kernels.checks import require, shape
from d2llm_kernels.iem_folded import Branch
from d2llm_kernels.promotion import promotion, unwanted


def check_task(task: Tensor, rows: Sequence[int], branches: int, device: torch.device) -> Tensor:
    """The task of each of ``rows`` on their device, shaped as they are.

    A device's tensor is not read from the host: there a number below 0 or above the last branch counts as the nearest.

    Raises:
        ArgumentError: unless ``task`` holds integers, broadcasts to ``rows`` and, on the CPU, names branches.
    """
    require(not task.is_floating_point() and task.dtype != torch.bool, "task", "an integer tensor", task.dtype)
    try:
        task = task.expand(rows)
    except RuntimeError:
        require(False, "task", f"a shape that broadcasts to {tuple(rows)}", shape(task))
    # Reading values would break a compiled graph.
    if task.device.type == "cpu" and not torch.compiler.is_compiling() and task.numel():
        low, high = (int(bound) for bound in task.aminmax())
        require(low >= 0 and high < branches, "task", f"values in 0..{branches - 1}", f"{low}..{high}")
    return task.to(device)


def branch_of(stacked: Branch, number: int) -> Branch:
    """The branch of one task."""
    return Branch(stacked.weight[number], stacked.bias[number], stacked.out_weight, stacked.out_bias)


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


def per_task(task: Tensor, branches: int, run: Callable[..., tuple[Tensor, ...]], *rows: Tensor) -> tuple[Tensor, ...]:
    """Results of ``run(number, *rows)`` for the rows of each task, in the order of the rows."""
    split = Rows(task, branches)
    # A branch without rows runs too: its weights get gradients of 0, which data-parallel training waits for.
    parts = [run(number, *(split.of(number, part) for part in rows)) for number in range(branches)]
    return tuple(map(split.chosen, zip(*parts, strict=True)))


def total(parts: Sequence[Tensor]) -> Tensor:
    """The sum of gradients."""
    return reduce(torch.add, parts)


class PerTask:
    """The functions of a backend, which take one branch, with a task for each row besides."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend

    def iem_scores(self, a: Tensor, b: Tensor, branch: Branch, task: Tensor | None) -> Tensor:
        """Forward of ``functional.iem_scores``."""
        if task is None:
            return cast(Tensor, self.backend.iem_scores(a, b, branch))

        def run(number: int, rows: Tensor) -> tuple[Tensor]:
            return (self.backend.iem_scores(rows, b, branch_of(branch, number)),)

        return per_task(task, len(branch.weight), run, a)[0]

    def iem_pairs(
        self, a: Tensor, b: Tensor, branch: Branch, task: Tensor | None, return_features: bool
    ) -> tuple[Tensor, Tensor]:
        """Forward of ``functional.iem_pairs`` on rows."""
        if task is None:
            return cast(tuple[Tensor, Tensor], self.backend.iem_pairs(a, b, branch, return_features))

        def run(number: int, left: Tensor, right: Tensor) -> tuple[Tensor, ...]:
            out: tuple[Tensor, ...] = self.backend.iem_pairs(left, right, branch_of(branch, number), return_features)
            return out if return_features else out[:1]

        z, *features = per_task(task, len(branch.weight), run, a, b)
        return z, features[0] if features else a.new_empty(0, a.shape[1], dtype=promotion(a, b, branch.weight))

    def iem_topk(self, a: Tensor, b: Tensor, branch: Branch, task: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
        """Forward of ``functional.iem_topk``."""
        if task is None:
            return cast(tuple[Tensor, Tensor], self.backend.iem_topk(a, b, branch, k))

        def run(number: int, rows: Tensor) -> tuple[Tensor, ...]:
            return cast(tuple[Tensor, ...], self.backend.iem_topk(rows, b, branch_of(branch, number), k))

        values, indices = per_task(task, len(branch.weight), run, a)
        return values, indices

    def iem_scores_backward(
        self, dz: Tensor, a: Tensor, b: Tensor, branch: Branch, task: Tensor | None, wanted: Sequence[bool]
    ) -> tuple[Tensor, ...]:
        """Gradients of ``iem_scores`` with respect to a, b and the four tensors of the branches."""
        if task is None:
            return cast(tuple[Tensor, ...], self.backend.iem_scores_backward(dz, a, b, branch, wanted))
        rows = Rows(task, len(branch.weight))
        found = [
            self.backend.iem_scores_backward(
                rows.slopes(number, dz), rows.of(number, a), b, branch_of(branch, number), wanted
            )
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
        """Gradients of ``iem_pairs`` with respect to a, b and the four tensors of the branches."""
        if task is None:
            return cast(tuple[Tensor, ...], self.backend.iem_pairs_backward(dz, dfeatures, a, b, branch, wanted))
        rows = Rows(task, len(branch.weight))
        found = [
            self.backend.iem_pairs_backward(
                rows.slopes(number, dz),
                None if dfeatures is None else rows.slopes(number, dfeatures),
                rows.of(number, a),
                rows.of(number, b),
                branch_of(branch, number),
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
