"""The library of the CUDA kernels: which GPUs it fits, what is said where it cannot be used."""

import pytest
import torch

from d2llm_kernels import backends
from d2llm_kernels.cuda import library
from d2llm_kernels.errors import BackendError
from d2llm_kernels.functional import attn_pool


@pytest.mark.parametrize(
    "built,capability,fits",
    [
        ("8.0", (8, 0), True),
        ("8.0", (8, 9), True),
        ("8.9", (8, 0), False),
        ("8.0", (9, 0), False),
        ("8.0+PTX", (9, 0), True),
        ("8.0;9.0a", (9, 0), True),
        ("9.0a", (10, 0), False),
        ("10.0a", (10, 3), False),
        ("10.0", (10, 3), True),
        ("8.0 9.0 12.0+PTX", (12, 1), True),
        ("", (8, 0), False),
    ],
)
def test_code_runs_on_later_minor_versions_and_ptx_on_all_later_ones(built, capability, fits):
    assert library._fits(built, capability) is fits


@pytest.fixture
def named(monkeypatch, tmp_path):
    """Has the library read from a file with this content."""

    def write(content: bytes):
        path = tmp_path / "_cuda.so"
        path.write_bytes(content)
        monkeypatch.setenv(library.LIBRARY, str(path))
        library.missing.cache_clear()

    yield write
    library.missing.cache_clear()


def test_a_library_for_another_torch_is_not_loaded_and_says_so(named):
    named(b"...d2llm_kernels built for torch 1.0.0\n...")
    expected = f"_cuda.so was built for torch 1.0.0, found {torch.__version__}"
    assert expected in str(backends.missing("cuda"))
    with pytest.raises(BackendError, match="backend='cuda': _cuda.so was built for torch 1.0.0"):
        attn_pool(torch.randn(1, 2, 16), torch.randn(2, 16), backend="cuda")


def test_what_is_no_library_says_so(named):
    named(f"d2llm_kernels built for torch {torch.__version__}\n".encode())
    assert "_cuda.so cannot be loaded" in str(backends.missing("cuda"))
