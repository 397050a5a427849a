"""Libraries of kernels: which torch and which GPUs they fit, what is said where one cannot be used."""

from types import SimpleNamespace

import pytest
import torch

import d2llm_kernels as dk
from d2llm_kernels import backends
from d2llm_kernels.backends.cpu import library as cpu
from d2llm_kernels.backends.cuda import library
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
    """Has a backend's library read from a file with this content."""

    def write(backend, content: bytes):
        path = tmp_path / f"_{backend}.so"
        path.write_bytes(content)
        monkeypatch.setenv({"cpu": cpu, "cuda": library}[backend].LIBRARY, str(path))
        forget()

    def forget():
        for module in (cpu, library):
            module.missing.cache_clear()

    yield write
    monkeypatch.undo()
    forget()


@pytest.mark.parametrize("backend", ("cpu", "cuda"))
def test_one_for_another_torch_is_not_loaded_and_says_so(backend, named):
    named(backend, b"\x7fELF...d2llm_kernels built for torch 1.0.0\n\0...")
    expected = f"_{backend}.so was built for torch 1.0.0, found {torch.__version__}"
    assert expected in str(backends.missing(backend)) and expected in dk.explain()
    with pytest.raises(BackendError, match=f"backend='{backend}' cannot serve attn_pool: _{backend}.so was built for"):
        attn_pool(torch.randn(1, 2, 16), torch.randn(2, 16), backend=backend)
    assert backends.select("attn_pool", "auto", "cpu", torch.float32) != backend


def test_the_folded_form_serves_where_the_library_of_the_cpu_does_not(named):
    named("cpu", b"d2llm_kernels built for torch 1.0.0\n")
    assert backends.select("attn_pool", "auto", "cpu", torch.float32) == "folded"


@pytest.fixture
def gpus(monkeypatch):
    """Makes up GPUs of these compute capabilities, the first of them current, and a library built for sm_90a."""

    def make(*capabilities):
        monkeypatch.setattr(library, "emulated", lambda: False)
        monkeypatch.setattr(library.extension, "missing", lambda extension: None)
        info = SimpleNamespace(build_info=lambda: {"architectures": "9.0a"})
        monkeypatch.setattr(library, "module", lambda: info)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capabilities[device or 0])
        for function in (library.missing, library._misfits):
            function.cache_clear()

    yield make
    for function in (library.missing, library._misfits):
        function.cache_clear()


def test_each_gpu_is_asked_for_itself(gpus):
    gpus((7, 5), (9, 0), (8, 6))
    assert library.missing() is None
    reasons = {
        device: library.unsupported(torch.device(device), torch.bfloat16) for device in ("cuda:0", "cuda:1", "cuda:2")
    }
    assert reasons["cuda:1"] is None
    assert reasons["cuda:0"] == "cuda:0 has a compute capability below 8.0"
    assert reasons["cuda:2"] == "built for 9.0a, cuda:2 is sm_86"
    assert library.unsupported(torch.device("cuda"), torch.bfloat16) == reasons["cuda:0"]


def test_a_library_that_no_gpu_runs_is_missing(gpus):
    gpus((8, 6), (7, 0))
    assert library.missing() == "built for 9.0a, cuda:0 is sm_86; cuda:1 has a compute capability below 8.0"


def test_what_is_no_library_says_so(named):
    named("cuda", f"d2llm_kernels built for torch {torch.__version__}\n".encode())
    assert "_cuda.so cannot be loaded" in str(backends.missing("cuda"))
