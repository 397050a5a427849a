"""LoRA beside a linear layer in plain torch (algebra: docs/algebra.md, section 7).

The adapter's product is added to the layer's own in place: nothing of the size of the output is made beside it, and the
gradient of x goes the same way back.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from d2llm_kernels.tensors import unwanted


def lora_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float, dropped: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Forward of ``functional.lora_linear`` on rows: y (T, N) and the inner values (T, R)."""
    inner = (x if dropped is None else dropped) @ a.T
    return F.linear(x, weight, bias).addmm_(inner, b.T, alpha=scaling), inner


def lora_linear_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    a: Tensor,
    b: Tensor,
    inner: Tensor,
    scaling: float,
    dropped: Tensor | None,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight, a, b and dropped, each empty, (0,), unless it is ``wanted``.

    With v = dy b: dx = dy weight + scaling v a, da = scaling vᵀ x, db = scaling dyᵀ inner; where dropout came between,
    the adapter's share goes to ``dropped`` in the place of x.
    """
    want_x, want_weight, want_a, want_b, want_dropped = wanted
    dx, dweight, da, db, ddropped = unwanted(dy, weight, a, b, dy)
    adapted = want_dropped if dropped is not None else want_x
    if want_a or adapted:
        dinner = dy @ b
    if want_x:
        dx = dy @ weight
        if dropped is None:
            dx.addmm_(dinner, a, alpha=scaling)
    if want_dropped:
        ddropped = (dinner @ a).mul_(scaling)
    if want_weight:
        dweight = dy.T @ x
    if want_a:
        da = (dinner.T @ (x if dropped is None else dropped)).mul_(scaling)
    if want_b:
        db = (dy.T @ inner).mul_(scaling)
    return dx, dweight, da, db, ddropped
