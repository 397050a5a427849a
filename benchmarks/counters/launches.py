"""What the host asks of a GPU in a call, counted without one: kernel launches, and torch operations of every kind.

Tensors without data (device "meta") stand in for those of a GPU. The host's code takes the way that it takes there,
down to the Triton kernels, whose launches are recorded in place of being made. Whatever asks for a tensor's values,
which would wait for the GPU there, has none to get here and raises; so does a copy between host and device.
"""

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any
from unittest import mock

import torch

# The documented place of this extension point: "Extending PyTorch", extending all torch APIs.
from torch.utils._python_dispatch import TorchDispatchMode

from d2llm_kernels import backends, functional
from d2llm_kernels.operators import in_batch, interaction, lora, pooling

DEVICE = torch.device("meta")
_ARCHITECTURE = "sm_90"
# Operations that ask for memory and fill none of it.
_ALLOCATIONS = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided")


@dataclass
class Issued:
    """What a call issued.

    Args:
        triton: launches of Triton kernels (``cross_compile.Launch``).
        operations: names of torch operations, views and allocations among them.
        launching: those of them that launch a kernel on a GPU.
    """

    triton: list[Any] = field(default_factory=list)
    operations: list[str] = field(default_factory=list)
    launching: list[str] = field(default_factory=list)

    @property
    def launches(self) -> int:
        """Kernels launched, Triton's and torch's."""
        return len(self.triton) + len(self.launching)

    @property
    def host_operations(self) -> int:
        """Everything that the host is asked for: launches, views and allocations."""
        return len(self.triton) + len(self.operations)


@contextmanager
def issued() -> Iterator[Issued]:
    """Count what is issued for tensors on ``DEVICE``; backend "triton" takes them."""
    # Triton need not be installed for the other counters.
    from tools.cross_compile import recorded

    found = Issued()
    # An operator of a library would show its fake in place of its work.
    plain = {name: function for module in (pooling, interaction, in_batch, lora) for name, function in _plain(module)}
    unwrapped, takes_all = mock.patch.multiple(functional, **plain), {"triton": None}
    supported = mock.patch.object(
        backends, "unsupported", lambda name, *tensors: takes_all.get(name, "takes no tensors without data")
    )
    numbers = mock.patch.object(torch, "tensor", _numbers)
    with unwrapped, supported, numbers, recorded(_ARCHITECTURE, "", found.triton), _Recorder(found):
        yield found


_tensor = torch.tensor


def _numbers(data: Any, **options: Any) -> torch.Tensor:
    """``torch.tensor``, which copies numbers of the host without a word to those who watch operations."""
    if torch.device(options.get("device") or "cpu") == DEVICE:
        raise RuntimeError("torch.tensor: a copy from host to device, which waits")
    return _tensor(data, **options)


class _Recorder(TorchDispatchMode):
    """Notes every operation that reaches the level below autograd."""

    def __init__(self, found: Issued) -> None:
        super().__init__()
        self._found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, int | torch.dtype):
            # Arithmetic of dtypes comes by here too.
            return out
        name = func.name().removeprefix("aten::")
        places = {each.device for each in (out, *args[:2]) if isinstance(each, torch.Tensor)}
        if name.startswith(("_to_copy", "copy_")) and len(places) > 1:
            raise RuntimeError(f"{name}: a copy between host and device, which waits")
        self._found.operations.append(name)
        if not func.is_view and name.split(".")[0] not in (*_ALLOCATIONS, "detach", "_unsafe_view"):
            self._found.launching.append(name)
        return out


def _plain(module: ModuleType) -> Iterator[tuple[str, Callable[..., Any]]]:
    """The public functions of operators, on operators that are plain functions which autograd knows."""
    spec = importlib.util.spec_from_file_location(module.__name__, module.__file__)
    assert spec is not None and spec.loader is not None
    copy = importlib.util.module_from_spec(spec)
    with mock.patch.object(torch.library, "custom_op", lambda name, **options: _Plain):
        spec.loader.exec_module(copy)
    yield from ((name, getattr(copy, name)) for name in functional.__all__ if name in vars(copy))


class _Plain:
    """In place of what ``torch.library.custom_op`` returns."""

    def __init__(self, body: Callable[..., Any]) -> None:
        self._body = self._call = body

    def register_fake(self, fake: Callable[..., Any]) -> Callable[..., Any]:
        return fake

    def register_autograd(self, backward: Callable[..., Any], setup_context: Callable[..., Any]) -> None:
        methods = {"forward": self._body, "setup_context": setup_context, "backward": backward}
        made = type("Operator", (torch.autograd.Function,), {name: staticmethod(f) for name, f in methods.items()})
        self._call = made.apply

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)
