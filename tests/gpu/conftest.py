"""Tests of kernels that need a GPU: on one, or on CPU tensors under ``TRITON_INTERPRET=1``, in their own process.

``make test`` runs them in the interpreter; ``make gpu-report`` on the GPU.
"""

import pytest
import torch

from d2llm_kernels.backends import interpreted

ON_GPU = torch.cuda.is_available() and not interpreted()
collect_ignore_glob = [] if ON_GPU or interpreted() else ["test_*.py"]


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the kernels run: the GPU, or the CPU that the interpreter stands in on."""
    return torch.device("cuda" if ON_GPU else "cpu")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "real: needs a real GPU")
    config.addinivalue_line("markers", "float64: needs the interpreter, which alone runs the kernels in float64")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("real") and not ON_GPU:
            item.add_marker(pytest.mark.skip(reason="needs a real GPU"))
        if item.get_closest_marker("float64") and ON_GPU:
            item.add_marker(pytest.mark.skip(reason="float64 runs in the interpreter only"))
