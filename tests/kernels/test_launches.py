"""What a call asks of a GPU: its kernels, and torch's between them. Counted on tensors without data.

On such tensors a value that the host reads raises, so that this shows too that no call waits for the device.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")

from d2llm_kernels.backends.cuda import interaction as cuda_backend
from d2llm_kernels.backends.gpu.interaction import PROGRAMS
from d2llm_kernels.backends.triton import operations as triton_backend
from d2llm_kernels.branch import Branch
from tools.cross_compile import Launch, recorded

WIDTH = 512
BOTH = (True, True)


class Operations(TorchDispatchMode):
    """Counts torch's operations that launch something: neither views nor allocations."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func._schema.returns
        view = any(result.alias_info is not None and not result.alias_info.is_write for result in results)
        name = func.name().removeprefix("aten::")
        if not view and "empty" not in name and name != "promote_types":
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


class Library:
    """In place of the CUDA kernels, whose operators take no tensors without data: what they were asked."""

    def __init__(self, found: Counter[str]) -> None:
        self.found = found

    def slopes(self, a: torch.Tensor, b: torch.Tensor, *rest: Any) -> torch.Tensor:
        self.found["slopes"] += 1
        pairs = len(b) if rest[-1] else len(a) * len(b)
        return meta(2, pairs // 64 or 1, b.shape[1], dtype=torch.float32)

    def inputs(self, a: torch.Tensor, b: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
        self.found["inputs"] += 1
        tiles, width = -(-len(b) // 128), b.shape[1]
        queries = 1 if rest[-1] else len(a)
        groups = min(queries, -(-PROGRAMS // (tiles * (width // 128))))
        da = meta(0 if rest[-1] else queries, 4 * tiles, width, dtype=torch.float32)
        return da, meta(-(-queries // -(-queries // groups)), len(b), width, dtype=torch.float32)

    def __getattr__(self, name: str) -> Callable[..., None]:
        def called(*arguments: Any) -> None:
            self.found[name] += 1

        return called


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    found: Counter[str] = Counter()
    launches: list[Launch] = []
    monkeypatch.setattr(cuda_backend, "operators", lambda: Library(found))
    monkeypatch.setattr(
        cuda_backend, "module", lambda: SimpleNamespace(weights_blocks=lambda width: (width // 128) ** 2)
    )
    with recorded("sm_90", "", launches), Operations() as operations:
        yield found
    found.update(launch.kernel.__name__ for launch in launches)
    found.update(operations.found)


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def branch(tasks: int = 0) -> Branch:
    stack = (tasks,) if tasks else ()
    return Branch(meta(*stack, WIDTH, WIDTH), meta(*stack, WIDTH), meta(1, WIDTH), meta(1))


def backward(name: str, size: int, pairs: bool = False, wanted: tuple[bool, bool] = BOTH, tasks: int = 0) -> Any:
    a, dz = meta(size, WIDTH), meta(size, dtype=torch.float32) if pairs else meta(size, size, dtype=torch.float32)
    module, task = (triton_backend, cuda_backend)[name == "cuda"], (meta(size, dtype=torch.int64) if tasks else None,)
    slopes = (dz, None) if pairs else (dz,)
    call = module.iem_pairs_backward if pairs else module.iem_scores_backward
    return partial(call, *slopes, a, a, branch(tasks), *(task if name == "triton" else ()), wanted)


@pytest.mark.parametrize(
    "name,size,pairs,tasks,limit",
    [
        ("triton", 32, False, 0, 14),
        ("triton", 32, False, 2, 14),
        ("triton", 4096, False, 0, 268),
        ("triton", 4096, False, 2, 268),
        ("triton", 256, True, 0, 12),
        ("cuda", 32, False, 0, 17),
        ("cuda", 4096, False, 0, 460),
        ("cuda", 256, True, 0, 15),
    ],
)
def test_a_backward_launches_no_more_than(name, size, pairs, tasks, limit, monkeypatch):
    with counted(monkeypatch) as found:
        backward(name, size, pairs, tasks=tasks)()
    assert sum(found.values()) <= limit, found
    chunks = max(1, size * (1 if pairs else size) >> 18)
    kernels = {"triton": "{}_kernel", "cuda": "{}"}[name]
    assert all(found[kernels.format(kernel)] == chunks for kernel in ("slopes", "weights", "inputs"))


@pytest.mark.parametrize("tasks", (0, 2))
def test_a_forward_is_one_launch(tasks, monkeypatch):
    a, task = meta(32, WIDTH), meta(32, dtype=torch.int64) if tasks else None
    for call in (
        partial(triton_backend.iem_scores, a, a, branch(tasks), task),
        partial(triton_backend.iem_pairs, a, a, branch(tasks), task, True),
    ):
        with counted(monkeypatch) as found:
            call()
        assert found == {"scores_kernel": 1}


@pytest.mark.parametrize("name", ("triton", "cuda"))
@pytest.mark.parametrize("pairs", (False, True))
def test_no_kernel_for_gradients_that_nobody_wants(name, pairs, monkeypatch):
    for wanted, left_out in (((True, False), "weights"), ((False, True), "inputs")):
        with counted(monkeypatch) as found:
            gradients = backward(name, 32, pairs, wanted)()
        assert not any(left_out in kernel for kernel in found)
        assert [gradient.numel() > 0 for gradient in gradients] == [wanted[0]] * 2 + [wanted[1]] * 4


def test_topk_of_tasks_waits_for_nothing(monkeypatch):
    with counted(monkeypatch) as found:
        triton_backend.iem_topk(meta(4, WIDTH), meta(1000, WIDTH), branch(2), meta(4, dtype=torch.int64), 10)
    assert found["scores_kernel"] == 1


@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
def test_a_gradient_of_pooling_that_is_not_wanted_costs_nothing(wanted):
    x, u = (torch.empty(*shape, device="meta") for shape in ((4, 20, 64), (8, 64)))
    launches = []
    with recorded("sm_90", "", launches):
        gradients = triton_backend.attn_pool_backward(x.new_empty(4, 8, 64), None, x, u, None, None, wanted)
    assert [g.shape for g in gradients] == [t.shape if want else (0,) for t, want in zip((x, u), wanted, strict=True)]
    _, softmax, last = (launch.arguments for launch in launches)
    assert [last[name] is not None for name in ("dx", "du")] == list(wanted)
    assert (softmax["a"] is None) == (last["a"] is None) == (not wanted[0])
