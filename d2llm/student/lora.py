"""LoRA beside the projections of a student's base."""

from typing import Any

from peft import LoraConfig, inject_adapter_in_model
from torch import nn

import d2llm_kernels as dk
from d2llm.errors import InputError, shown
from d2llm.student.configuration import D2LLMConfig


def with_lora(backbone: Any, config: D2LLMConfig) -> Any:
    """Freeze the base and its dropout, unless it is to be trained, and put float32 LoRA beside its projections.

    Raises:
        InputError: if it has no module that ``lora_targets`` names.
    """
    backbone.requires_grad_(config.train_base)
    if not config.train_base:
        # What is frozen has nothing to be kept from learning by heart; BERT-like bases bring dropout.
        for module in backbone.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    if config.lora_r == 0:
        return backbone
    lora = LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=config.lora_targets,
    )
    try:
        model = inject_adapter_in_model(lora, backbone)
    except ValueError as error:
        raise InputError(
            f"lora_targets: {shown(config.lora_targets)} fit no module of the base ({error!s:.200})"
        ) from None
    for parameter in model.parameters():
        if parameter.requires_grad:
            # Updates of 1e-4 vanish in the eight bits of a bfloat16 mantissa.
            parameter.data = parameter.data.float()
    return dk.accelerate(model)
