"""The total loss holds nothing larger than the (B, B) scores, forward and backward."""

import torch
from torch.profiler import ProfilerActivity, profile

from d2llm import losses
from d2llm_kernels.backends.folded import in_batch


def test_no_tensor_of_all_triples(monkeypatch):
    batch, negatives, elements = 192, 8, 1 << 13
    monkeypatch.setattr(in_batch, "chunk_elements", lambda device: elements)
    z = torch.randn(batch, 1 + negatives, requires_grad=True)
    z_in_batch = torch.randn(batch, batch, requires_grad=True)
    s, s_in_batch = torch.rand(batch, 1 + negatives), torch.rand(batch, batch)
    duplicates = torch.rand(batch, batch) < 0.1
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        losses.d2llm_loss(z, z_in_batch, s, s_in_batch, duplicates=duplicates)[0].backward()
    largest = max(event.self_cpu_memory_usage for event in recorded.events())
    assert 0 < largest <= batch * batch * 4
