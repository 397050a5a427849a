"""peft's LoRA layers on ``functional.lora_linear``, recognised by their names: peft itself is not needed."""

from typing import Any

from torch import Tensor, nn

from d2llm_kernels.operators.lora import lora_linear
from d2llm_kernels.tensors import autocasts, is_plain


class FusedLora(nn.Module):
    """What is put before the class of a LoRA layer: its forward where one plain adapter is at work, else its own.

    The layer stays the object that it was, with its parameters, its class among its bases and all of its methods:
    merging, switching adapters off and saving go on as before.
    """

    kernels_backend: str

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's own forward; x (..., K) -> (..., N)."""
        name = None if args or kwargs else _adapter(self)
        base: Any = self.base_layer
        if name is None or not (autocasts(x) or x.dtype == base.weight.dtype):
            result: Tensor = super().forward(x, *args, **kwargs)
            return result
        a, b, dropout = (getattr(self, part)[name] for part in ("lora_A", "lora_B", "lora_dropout"))
        dropped = dropout(x) if isinstance(dropout, nn.Dropout) and self.training and dropout.p > 0 else None
        scaling = float(getattr(self, "scaling")[name])  # noqa: B009  a dict, unlike what mypy thinks modules have
        return lora_linear(x, base.weight, base.bias, a.weight, b.weight, scaling, dropped, self.kernels_backend)


# The fused class of each class of LoRA layers.
_FUSED: dict[type, type[nn.Module]] = {}


def is_lora(module: nn.Module) -> bool:
    """Whether it is a layer of peft's LoRA over a plain linear one."""
    parts = [getattr(module, name, None) for name in ("lora_A", "lora_B", "lora_dropout")]
    base = getattr(module, "base_layer", None)
    return (
        type(base) is nn.Linear
        and is_plain(base.weight)
        and all(isinstance(part, nn.ModuleDict) for part in parts)
        and isinstance(getattr(module, "scaling", None), dict)
        and hasattr(module, "active_adapters")
    )


def fuse(layer: nn.Module, backend: str) -> nn.Module:
    """Let a LoRA layer compute by a backend, in place."""
    if not isinstance(layer, FusedLora):
        kind = type(layer)
        if kind not in _FUSED:
            _FUSED[kind] = type(f"Fused{kind.__name__}", (FusedLora, kind), {})
        layer.__class__ = _FUSED[kind]
    assert isinstance(layer, FusedLora)
    layer.kernels_backend = backend
    return layer


def _adapter(layer: Any) -> str | None:
    """The name of the one adapter at work, if it is a plain one."""
    if getattr(layer, "disable_adapters", False) or getattr(layer, "merged", False):
        return None
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(active) != 1 or active[0] in getattr(layer, "lora_variant", {}):
        return None
    factors = layer.lora_A[active[0]], layer.lora_B[active[0]]
    return active[0] if all(type(each) is nn.Linear and each.bias is None for each in factors) else None
