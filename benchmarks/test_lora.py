"""Linear layers with LoRA."""

from collections.abc import Iterator

import torch

from d2llm_kernels.measure.case import Case
from d2llm_kernels.measure.lora import lora

# (K, N) of SmolLM2-135M's projections, and of a decoder of 7B.
_SMALL, _LARGE = ((576, 576), (576, 1536), (1536, 576)), ((4096, 4096), (4096, 14336))


def cases(full: bool) -> Iterator[Case]:
    """The rows."""
    for depth, width in (*_SMALL, *_LARGE) if full else _SMALL[1:2]:
        for passes in ("f", "fb"):
            yield lora(passes, torch.bfloat16, 2048, depth, width)
    if full:
        yield lora("fb", torch.float32, 2048, *_SMALL[1])


def test_lora(outcome):
    assert "failure" not in outcome, outcome["failure"]
