"""The kernels of ``csrc/cuda`` as a backend, and the functions that launch them. Design: docs/kernels/cuda.md."""

import torch

from d2llm_kernels.backends.cuda import library
from d2llm_kernels.backends.protocol import Backend, Interaction, Operation, Pooling
from d2llm_kernels.backends.tasks import PerTask


class Cuda(Backend):
    """Kernels for NVIDIA GPUs from Ampere on."""

    name = "cuda"

    def missing(self) -> str | None:
        return library.missing()

    def unsupported(self, operation: Operation, device: torch.device, dtype: torch.dtype) -> str | None:
        if operation in ("in_batch_terms", "lora_linear"):
            return "there are no CUDA kernels of it; 'triton' has some"
        return library.unsupported(device, dtype)

    def pooling(self) -> Pooling:
        from d2llm_kernels.backends.cuda import pooling

        return pooling

    def interaction(self) -> Interaction:
        from d2llm_kernels.backends.cuda import interaction

        return PerTask(interaction)
