"""Tests of kernels that need a GPU: on one, or on CPU tensors in a process of their own.

Under ``TRITON_INTERPRET=1`` the Triton kernels run in Triton's interpreter; where ``D2LLM_KERNELS_CUDA_LIBRARY`` names
a library that tests/emulation/build.py made, the CUDA kernels run in the emulation. ``make test`` does both; ``make
gpu-report`` runs everything on the GPU.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from d2llm_kernels import backends
from d2llm_kernels.backends.cuda import library
from d2llm_kernels.backends.triton import interpreted

INTERPRETED = interpreted()
EMULATED = library.missing() is None and library.emulated()
ON_GPU = torch.cuda.is_available() and not interpreted() and not EMULATED
BACKENDS = [name for name in ("triton", "cuda") if backends.missing(name) is None]
#: For tests over several shapes, where a GPU is not there to be fast: each kernel has another test in both.
BFLOAT16 = torch.bfloat16 if ON_GPU else pytest.param(torch.bfloat16, marks=pytest.mark.rest)
FLOAT16 = torch.float16 if ON_GPU else pytest.param(torch.float16, marks=pytest.mark.full)

collect_ignore_glob: list[str] = []
if EMULATED:
    BACKENDS = ["cuda"]
    collect_ignore_glob = ["test_triton_*.py", "test_report.py", "test_tune.py"]
elif not ON_GPU and not interpreted():
    collect_ignore_glob = ["test_*.py"]
else:
    collect_ignore_glob = ["test_emulation.py"]
if interpreted():
    from tests.gpu.interpreter import patch_once_a_module

    patch_once_a_module()


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the kernels run: the GPU, or the CPU that stands in for it."""
    return torch.device("cuda" if ON_GPU else "cpu")


Make = Callable[..., Any]


@pytest.fixture
def make_tokens(device: torch.device) -> Make:
    """Makes tokens (B, L, D), queries (H, D) and a mask with holes, the same on every device."""

    def inputs(batch, length, dim, heads, dtype=torch.float64, scale=1.0):
        generator = torch.Generator().manual_seed(batch + length + dim + heads)
        x = torch.randn(batch, length, dim, generator=generator, dtype=torch.float64)
        u = torch.randn(heads, dim, generator=generator, dtype=torch.float64) * scale / math.sqrt(dim)
        mask = torch.rand(batch, length, generator=generator) < 0.7
        return x.to(device, dtype), u.to(device, dtype), mask.to(device)

    return inputs


@pytest.fixture
def make_pairs(device: torch.device) -> Make:
    """Makes a (Nq, F), b (Np, F) and the four tensors of a branch."""

    def inputs(queries, passages, hidden, dtype=torch.float64):
        generator = torch.Generator().manual_seed(queries + passages + hidden)
        shapes = ((queries, hidden), (passages, hidden), (hidden, hidden), (hidden,), (1, hidden), (1,))
        tensors = [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]
        tensors[2] /= math.sqrt(hidden)
        return [tensor.to(device, dtype) for tensor in tensors]

    return inputs


@pytest.fixture(autouse=True)
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter runs one program after another, so that as many as keep a GPU busy cost most of its time."""
    if interpreted():
        from d2llm_kernels.backends.triton import interaction_backward, pool_backward

        monkeypatch.setattr(interaction_backward, "PROGRAMS", 16)
        monkeypatch.setattr(pool_backward, "_PROGRAMS", 32)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each backend for GPUs, as what "auto" takes."""
    monkeypatch.setenv(backends.ENVIRONMENT, request.param)
    return request.param


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "real: needs a real GPU")
    config.addinivalue_line("markers", "float64: needs the interpreter, which alone runs the kernels in float64")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("real") and not ON_GPU:
            item.add_marker(pytest.mark.skip(reason="needs a real GPU"))
        if item.get_closest_marker("float64") and not interpreted():
            item.add_marker(pytest.mark.skip(reason="float64 runs in the interpreter only"))
