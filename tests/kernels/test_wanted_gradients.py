"""Gradients that nobody wants: None in their place, the others unchanged, and no kernel for them."""

import pytest
import torch

import d2llm_kernels as dk
from tests.kernels.cases import BACKENDS
from tests.kernels.test_iem_tasks import TASKS, inputs

NAMES = ("a", "b", "weight", "bias", "out_weight", "out_bias")


def gradients(call, tensors, frozen):
    leaves = [t.float().requires_grad_(name not in frozen) for name, t in zip(NAMES, tensors, strict=True)]
    out = call(*leaves)
    (out[0] if isinstance(out, tuple) else out).square().sum().backward()
    return [leaf.grad for leaf in leaves]


@pytest.mark.parametrize("backend", (*BACKENDS, "reference"))
@pytest.mark.parametrize("tasks", (False, True))
@pytest.mark.parametrize("frozen", (NAMES[:2], NAMES[2:], ("a",), ("weight",), NAMES[:5]))
def test_the_rest_is_unchanged(frozen, tasks, backend):
    a, b, weight, bias, *out = inputs(passages=7)
    tensors = (a, b, weight, bias, *out) if tasks else (a, b, weight[0], bias[0], *out)
    task = TASKS if tasks else None
    for call in (
        lambda *t: dk.functional.iem_scores(*t, backend=backend, task=task),
        lambda *t: dk.functional.iem_pairs(*t, return_features=True, backend=backend, task=task),
    ):
        every, some = gradients(call, tensors, ()), gradients(call, tensors, frozen)
        for name, one, two in zip(NAMES, every, some, strict=True):
            assert two is None if name in frozen else torch.equal(one, two)
