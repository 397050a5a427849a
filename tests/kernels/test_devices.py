"""Machines with several GPUs: what is chosen and launched follows the tensors, not the device that is current."""

from contextlib import contextmanager

import pytest
import torch

import d2llm_kernels as dk
from d2llm_kernels import backends, functional
from d2llm_kernels.backends import triton

pytest.importorskip("triton")

from tools.cross_compile import cases, recorded


@pytest.fixture
def two_gpus(monkeypatch):
    """Makes torch see two GPUs of these compute capabilities, the first of which is current."""

    def see(*capabilities):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capabilities[device or 0])
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        forget()

    def forget():
        for function in (triton._missing, triton._too_old):
            function.cache_clear()

    yield see
    monkeypatch.undo()
    forget()


@pytest.mark.parametrize("fit", (0, 1))
def test_the_device_of_the_tensors_decides(two_gpus, fit):
    two_gpus(*((9, 0) if index == fit else (7, 5) for index in range(2)))
    assert backends.missing("triton") is None
    assert backends.select("attn_pool", "auto", torch.device("cuda", fit), torch.bfloat16) == "triton"
    assert backends.select("attn_pool", "auto", torch.device("cuda", 1 - fit), torch.bfloat16) == "folded"
    with pytest.raises(dk.BackendError, match=f"compute capability of GPU {1 - fit} is below 8.0"):
        backends.select("attn_pool", "triton", torch.device("cuda", 1 - fit), torch.bfloat16)
    # Of no device in particular: the current one.
    assert backends.select("attn_pool", "auto", "cuda", torch.bfloat16) == ("folded" if fit else "triton")


def test_without_a_gpu_that_fits_the_backend_is_missing(two_gpus):
    two_gpus((7, 5), (7, 0))
    assert "below 8.0" in backends.missing("triton")


def test_functions_ask_for_the_device_of_their_tensors(monkeypatch):
    asked = []
    monkeypatch.setattr(backends, "select", lambda operation, backend, device, dtype: asked.append(device) or "folded")
    x, branch = torch.randn(2, 3, 4), (torch.randn(4, 4), torch.randn(4), torch.randn(1, 4), torch.randn(1))
    functional.attn_pool(x, torch.randn(2, 4))
    functional.iem_scores(x[0], x[1], *branch)
    functional.iem_pairs(x[0], x[1], *branch)
    functional.iem_topk(x[0], x[1], *branch, 1)
    functional.in_batch_terms(torch.randn(3, 3))
    assert asked == [x.device] * 5


def test_every_triton_kernel_is_launched_on_the_device_of_its_tensors(monkeypatch):
    current = []

    @contextmanager
    def device_of(tensor):
        current.append(tensor)
        yield
        current.pop()

    class Launches(list):
        def append(self, launch):
            tensors = [value for value in launch.arguments.values() if isinstance(value, torch.Tensor)]
            assert current and {current[-1].device} == {tensor.device for tensor in tensors}
            super().append(launch)

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    launches = Launches()
    for label, call in cases():
        with recorded("sm_90", label, launches):
            call()
    assert len({launch.kernel.__name__ for launch in launches}) == 11
    assert not current
