"""The C++ kernels of ``csrc/cpu`` as a backend. Design: docs/kernels/cpu.md."""

import torch

from d2llm_kernels.backends.cpu import library
from d2llm_kernels.backends.protocol import (
    Backend,
    InBatchTerms,
    Int8,
    Interaction,
    Linear,
    Lora,
    Operation,
    Pooling,
    Search,
    type_name,
)
from d2llm_kernels.backends.tasks import PerTask
from d2llm_kernels.branch import Branch

_DTYPES = (torch.float32, torch.bfloat16)


class Cpu(Backend):
    """Kernels for every x86-64 CPU, for the instruction set that it has."""

    name = "cpu"

    def missing(self) -> str | None:
        return library.missing()

    def unsupported(self, operation: Operation, device: torch.device, dtype: torch.dtype) -> str | None:
        if device.type != "cpu":
            return f"the C++ kernels take CPU tensors, got {device.type} tensors"
        if dtype not in _DTYPES:
            return f"the C++ kernels take bfloat16 and float32, got {type_name(dtype)}"
        return None

    def pooling(self) -> Pooling:
        from d2llm_kernels.backends.cpu import pooling

        return pooling

    def interaction(self) -> Interaction:
        from d2llm_kernels.backends.cpu import interaction

        return PerTask(interaction)

    def in_batch(self) -> InBatchTerms:
        from d2llm_kernels.backends.cpu import in_batch

        return in_batch

    def linear(self) -> Linear:
        from d2llm_kernels.backends.cpu import linear

        return linear

    def lora(self) -> Lora:
        # Products with the LLM's own weights: torch's are at the limit here.
        from d2llm_kernels.backends.folded import lora

        return lora

    def int8(self) -> Int8:
        from d2llm_kernels.backends.cpu import interaction

        return interaction

    def search(self, branch: Branch, dtype: torch.dtype) -> Search:
        made: Search = library.classes().Search(*branch, dtype)
        return made
