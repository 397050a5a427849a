"""The literal formulas of ``d2llm_kernels.reference`` as a backend, in the number types that the operators promise."""

from torch import Tensor

from d2llm_kernels import reference
from d2llm_kernels.backends.protocol import Backend
from d2llm_kernels.backends.tasks import per_task
from d2llm_kernels.branch import Branch, InBatch
from d2llm_kernels.tensors import accumulate_dtype, promoted, promotion


class Reference(Backend):
    """Formulas alone, for any floating dtype on any device."""

    name = "reference"
    kernels = False

    def formulas(self) -> "_Formulas":
        return _Formulas()


class _Formulas:
    def attn_pool(self, x: Tensor, u: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor]:
        x, u = promoted(x, u)
        pooled, lse = reference.attn_pool(x, u, mask, cu_seqlens)
        return pooled, lse.to(accumulate_dtype(lse.dtype))

    def iem_scores(self, a: Tensor, b: Tensor, branch: Branch, task: Tensor | None) -> Tensor:
        a, b, *weights = promoted(a, b, *branch)

        def run(rows: Tensor, branch: Branch) -> tuple[Tensor]:
            return (reference.iem_scores(rows, b, *branch),)

        (z,) = per_task(task, Branch(*weights), run, a)
        return z.to(accumulate_dtype(z.dtype))

    def iem_pairs(
        self, a: Tensor, b: Tensor, branch: Branch, task: Tensor | None, return_features: bool
    ) -> tuple[Tensor, Tensor]:
        a, b, *weights = promoted(a, b, *branch)

        def run(left: Tensor, right: Tensor, branch: Branch) -> tuple[Tensor, ...]:
            return reference.iem_pairs(left, right, *branch)

        z, features = per_task(task, Branch(*weights), run, a, b)
        return z.to(accumulate_dtype(z.dtype)), features

    def iem_topk(self, a: Tensor, b: Tensor, branch: Branch, task: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
        return reference.topk(self.iem_scores(a, b, branch, task), k)

    def in_batch_terms(self, batch: InBatch) -> tuple[Tensor, Tensor]:
        wide = accumulate_dtype(promotion(*batch.scores()))
        z, z_hard, s_hard = (scores.to(wide) for scores in batch[:3])
        s = None if batch.s_in_batch is None else batch.s_in_batch.to(wide)
        return reference.in_batch_terms(z, z_hard, s_hard, s, batch.duplicates, batch.temperature)

    def lora_linear(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scaling: float,
        dropped: Tensor | None,
    ) -> Tensor:
        return reference.lora_linear(x, weight, bias, a, b, scaling, dropped)
