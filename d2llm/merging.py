"""LoRA merged into the weights that it adapts, in a copy of an LLM that computes without gradients.

Beside every product LoRA has two small ones, casts and a sum, which take longer than the product itself. The copy has
the products alone. It shares every tensor that it need not change, and the LLM stays as it is: its weights, their
names, and what may be trained.
"""

import copy
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from d2llm.compiling import compile_in_place
from d2llm.devices import best_device
from d2llm_kernels.rough.linear import replace_linear
from d2llm_kernels.tensors import is_plain

#: Instructions of x86 CPUs, any of which multiplies bfloat16.
_BFLOAT16 = ("avx512_bf16", "amx_bf16", "avx_ne_convert")


def inference_dtype(weights: torch.dtype, device: torch.device) -> torch.dtype:
    """The number type to compute in: that of the weights, or float32 on an x86 CPU that does not multiply it."""
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    if device.type != "cpu" or weights not in (torch.bfloat16, torch.float16) or capabilities is None:
        return weights
    found = capabilities()
    slow = found.get("architecture") == "x86_64" and not any(found.get(name) for name in _BFLOAT16)
    return torch.float32 if slow or weights == torch.float16 else weights


def multiplies_bfloat16() -> bool:
    """Whether what models are trained on here computes faster in bfloat16; autocast to it is a loss otherwise."""
    return inference_dtype(torch.bfloat16, best_device()) == torch.bfloat16


def widen(model: nn.Module) -> None:
    """Turn weights into float32, in place, where the device does not multiply their number type.

    Learning in it would take many times as long there.
    """
    for weight in model.parameters():
        weight.data = weight.data.to(inference_dtype(weight.dtype, weight.device))


def is_sharded(module: nn.Module) -> bool:
    """Whether weights are shared out over processes, gathered for a while or not, so that no copy can be made."""
    managed = any(isinstance(part, FSDPModule) for part in module.modules())
    return managed or any(isinstance(weight, DTensor) for weight in module.parameters())


def takes_turns(module: nn.Module) -> bool:
    """Whether a module is for one thread at a time.

    Processes that share weights meet in every call; bitsandbytes' layers of eight bits move their scales in the first.
    """
    return is_sharded(module) or not all(weight.is_floating_point() for weight in module.parameters())


def is_quantised(module: nn.Module) -> bool:
    """Whether some weights are held in fewer bits, by bitsandbytes or torchao, so that nothing is merged into them."""
    return any(map(in_few_bits, module.parameters()))


def in_few_bits(weight: Tensor) -> bool:
    """Whether a weight is held in fewer bits than its products have; a share of one that is shared out is not."""
    return not (is_plain(weight) or isinstance(weight, DTensor))


class InferenceCopy:
    """:func:`merged` of one module, kept and made again when the module's weights are others."""

    def __init__(self) -> None:
        #: Whether torch compiles the copies made from now on, and whether their linear layers are in int8.
        self.compiled = self.int8 = False
        self._made: tuple[Any, list[tuple[Any, ...]], list[Tensor]] | None = None

    def of(self, module: Any, dtype: torch.dtype) -> Any:
        """The copy of ``module`` in ``dtype``."""
        places = [(dtype, *_place(weight)) for weight in module.parameters()]
        learned = [
            weight.detach()
            for name, weight in module.named_parameters()
            if ".lora_" in name or (weight.requires_grad and weight.dtype != dtype)
        ]
        if self._made is not None:
            made, old_places, old_learned = self._made
            # A frozen weight changes only by being another tensor; one that is learned changes in place.
            if places == old_places and all(map(torch.equal, learned, old_learned)):
                return made
        made = merged(module, dtype)
        if self.int8:
            replace_linear(made)
        if self.compiled:
            compile_in_place(made)
        self._made = made, places, [weight.clone() for weight in learned]
        return made

    def drop(self) -> None:
        """Free the copy."""
        self._made = None


def _place(weight: Tensor) -> tuple[Any, ...]:
    return weight.data_ptr(), weight.dtype, weight.device, weight.shape


@torch.no_grad()
def merged(module: Any, dtype: torch.dtype) -> Any:
    """A copy of a module in evaluation mode with LoRA merged and all floating weights in ``dtype``.

    The sum of a weight and its LoRA is taken in float32 and rounded once. What is the same in both is shared, buffers
    always, and so are layers that hold their weight in few bits, whose LoRA stays beside them: they keep more of it
    than the weight.
    """
    if isinstance(module, PeftModel):
        module = module.get_base_model()
    memo: dict[int, Any] = {id(buffer): buffer for buffer in module.buffers()}
    for layer in module.modules():
        if any(map(in_few_bits, layer.parameters(recurse=False))):
            memo[id(layer)] = layer
        if isinstance(layer, LoraLayer):
            base: Any = layer.get_base_layer()
            if is_plain(base.weight):
                memo[id(layer)] = _merged_layer(layer, dtype)
    for weight in module.parameters():
        if is_plain(weight) and weight.dtype != dtype:
            memo[id(weight)] = nn.Parameter(weight.to(dtype), requires_grad=False)
        else:
            memo[id(weight)] = weight
    return copy.deepcopy(module, memo).eval()


def _merged_layer(layer: Any, dtype: torch.dtype) -> nn.Module:
    alone = copy.deepcopy(layer).float()
    alone.merge()
    base: nn.Module = alone.get_base_layer()
    return base.to(dtype).requires_grad_(False)
