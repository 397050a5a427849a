"""A training step of the heads never waits for the GPU, so that a CUDA graph can hold it: shown without a GPU.

Tensors without data take the place of a GPU's. ``.item()``, ``.tolist()``, ``.cpu()``, a branch on a tensor, a size
that depends on values: each needs data, and raises. So does a tensor of the host among the GPU's.
"""

from functools import partial

import pytest
import torch

pytest.importorskip("triton")

import d2llm_kernels as dk
from benchmarks.counters.launches import DEVICE, issued
from d2llm.losses import d2llm_loss

BATCH, LENGTH, GROUP, WIDTH, HIDDEN = 4, 30, 3, 64, 32


def empty(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device=DEVICE)


def tasks():
    return empty(BATCH, dtype=torch.int64)


def padded():
    return {"mask": empty(BATCH, LENGTH, dtype=torch.bool)}


def packed():
    return {"cu_seqlens": empty(BATCH + 1, dtype=torch.int32)}


class Heads(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.pma = dk.PMA(WIDTH, 4, backend="triton")
        self.iem = dk.IEM(WIDTH, HIDDEN, backend="triton")

    def embed(self, where):
        rows = (BATCH, LENGTH) if "mask" in where else (BATCH * LENGTH,)
        return self.pma(empty(*rows, WIDTH, dtype=torch.bfloat16).requires_grad_(), **where)


def step(heads, optimizer, where, task):
    q, p = heads.embed(where), heads.embed(where)
    group = torch.stack([p, *(heads.embed(where) for _ in range(GROUP - 1))], 1)
    z, features = heads.iem(q[:, None], group, task if isinstance(task, int) else task[:, None], return_features=True)
    z_in_batch = heads.iem.score_all(q, p, task)
    teacher = {"s": empty(BATCH, GROUP), "s_in_batch": empty(BATCH, BATCH)}
    masks = {"valid": empty(BATCH, GROUP, dtype=torch.bool), "duplicates": empty(BATCH, BATCH, dtype=torch.bool)}
    relation = empty(BATCH, GROUP, GROUP)
    total, parts = d2llm_loss(z, z_in_batch, **teacher, features=features, teacher_relation=relation, **masks)
    assert len(parts) == 6
    optimizer.zero_grad(set_to_none=True)
    total.backward()
    with pytest.MonkeyPatch.context() as patch:
        # Else the optimizer, which knows its devices by name, turns away one that stands in for another.
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        optimizer.step()


@pytest.mark.parametrize("where", (padded, packed))
@pytest.mark.parametrize("task", (lambda: 1, tasks), ids=("one task", "tasks"))
@pytest.mark.parametrize("options", ({"foreach": True}, {"foreach": False}), ids=("foreach", "single"))
def test_a_training_step_asks_no_tensor_for_its_values(monkeypatch, where, task, options):
    monkeypatch.setenv("D2LLM_KERNELS_BACKEND", "triton")
    heads = Heads().to(DEVICE)
    optimizer = torch.optim.AdamW(heads.parameters(), capturable=True, **options)
    with issued() as found:
        step(heads, optimizer, where(), task())
    kernels = {launch.kernel.__name__ for launch in found.triton}
    assert {"pool_forward_kernel", "pool_gradients_kernel", "scores_kernel", "weights_kernel"} <= kernels
    assert {"in_batch_forward_kernel", "in_batch_backward_kernel"} <= kernels
    missing = {name for name, one in heads.named_parameters() if one.requires_grad and one.grad is None}
    # A single task leaves the other's branch alone.
    assert missing == (set() if task is tasks else {"iem.proj0.weight", "iem.proj0.bias"})


@pytest.mark.parametrize(
    "wait",
    [
        torch.Tensor.item,
        torch.Tensor.tolist,
        torch.Tensor.cpu,
        torch.Tensor.numpy,
        torch.Tensor.nonzero,
        bool,
        int,
        partial(torch.Tensor.to, device="cpu"),
        lambda x: torch.ones(1, device=DEVICE)[x > 0],
        lambda x: torch.zeros(1).copy_(x),
        lambda x: torch.bincount(x.long()),
        lambda x: torch.repeat_interleave(x, x.long()),
        lambda x: x + torch.ones(1),
        lambda x: torch.ones(1).to(DEVICE) + x,
        lambda x: torch.tensor([1.0], device=DEVICE) + x,
        lambda x: x.copy_(torch.ones(1)),
    ],
)
def test_what_would_wait_raises(wait):
    with issued(), pytest.raises((RuntimeError, NotImplementedError, TypeError)):
        wait(empty(1))
