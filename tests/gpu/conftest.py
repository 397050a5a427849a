"""Tests of kernels that need a GPU: on one, or on CPU tensors in a process of their own.

Under ``TRITON_INTERPRET=1`` the Triton kernels run in Triton's interpreter; where ``D2LLM_KERNELS_CUDA_LIBRARY`` names
a library that tests/emulation/build.py made, the CUDA kernels run in the emulation. ``make test`` does both; ``make
gpu-report`` runs everything on the GPU.
"""

import pytest
import torch

from d2llm_kernels import backends
from d2llm_kernels.backends import interpreted
from d2llm_kernels.cuda import library

EMULATED = library.missing() is None and library.emulated()
ON_GPU = torch.cuda.is_available() and not interpreted() and not EMULATED
BACKENDS = [name for name in ("triton", "cuda") if backends.missing(name) is None]

collect_ignore_glob: list[str] = []
if EMULATED:
    BACKENDS = ["cuda"]
    collect_ignore_glob = ["test_triton_*.py", "test_report.py", "test_tune.py"]
elif not ON_GPU and not interpreted():
    collect_ignore_glob = ["test_*.py"]
else:
    collect_ignore_glob = ["test_emulation.py"]


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the kernels run: the GPU, or the CPU that stands in for it."""
    return torch.device("cuda" if ON_GPU else "cpu")


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
