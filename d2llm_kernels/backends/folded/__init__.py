"""The algebra of docs/algebra.md in plain torch: any floating dtype on any device."""

from d2llm_kernels.backends.protocol import Backend, InBatchTerms, Interaction, Lora, Pooling
from d2llm_kernels.backends.tasks import PerTask


class Folded(Backend):
    """What runs where there are no kernels."""

    name = "folded"
    kernels = False

    def pooling(self) -> Pooling:
        from d2llm_kernels.backends.folded import pooling

        return pooling

    def interaction(self) -> Interaction:
        from d2llm_kernels.backends.folded import interaction

        return PerTask(interaction)

    def in_batch(self) -> InBatchTerms:
        from d2llm_kernels.backends.folded import in_batch

        return in_batch

    def lora(self) -> Lora:
        from d2llm_kernels.backends.folded import lora

        return lora
