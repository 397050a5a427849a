"""Offsets of packed batches: where they are checked, and that no kernel's way waits for them."""

from types import SimpleNamespace

import pytest
import torch

import d2llm_kernels as dk
from d2llm_kernels.offsets import rising_offsets

# Packed tokens on a GPU that is not here: what ``rising_offsets`` asks of them.
ON_GPU = SimpleNamespace(shape=(9, 4), device=torch.device("cuda", 1), is_cuda=True)


@pytest.fixture
def copies(monkeypatch):
    """Notes how tensors are pinned and copied, in place of doing it."""
    made = []

    def pin(tensor):
        made.append("pinned")
        return tensor

    def to(tensor, device, **options):
        made.append((device, options))
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "to", to)
    return made


def test_offsets_of_the_host_are_copied_to_a_gpu_without_waiting(copies):
    given = torch.tensor([0, -1, 4, -1, 9])[::2]
    assert torch.equal(rising_offsets(given, ON_GPU), given) and rising_offsets(given, ON_GPU).is_contiguous()
    assert copies == ["pinned", (ON_GPU.device, {"non_blocking": True})] * 2


def test_falling_offsets_of_the_host_are_refused_before_any_copy(copies):
    with pytest.raises(dk.ArgumentError, match="^cu_seqlens: expected"):
        rising_offsets(torch.tensor([0, 6, 4, 9]), ON_GPU)
    assert not copies


def test_offsets_beside_the_tokens_of_the_host_are_not_copied(copies):
    given = torch.tensor([0, 4, 9], dtype=torch.int32)
    assert rising_offsets(given, torch.zeros(9, 4)) is given and not copies
