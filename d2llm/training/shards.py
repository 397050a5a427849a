"""Weights that are sharded over processes, of which FSDP 2 is served."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.distributed.fsdp import FSDPModule
from transformers import Trainer
from transformers.integrations import is_deepspeed_zero3_enabled

from d2llm.errors import InputError
from d2llm.student import D2LLM
from d2llm.training.config import RunConfig


def check_sharding(trainer: Trainer, run: RunConfig) -> None:
    """Make sure that a run's weights are whole in every process, or sharded in a way that it can measure and save.

    Raises:
        InputError: for FSDP 1 and ZeRO-3, which keep their shards where only their own wrappers find them, or for
            cached gradients or a compiled LLM beside any shards.
    """
    kind = None
    if trainer.is_fsdp_enabled and not trainer.accelerator.is_fsdp2:
        kind = "FSDP 1"
    elif trainer.is_deepspeed_enabled and is_deepspeed_zero3_enabled():
        kind = "ZeRO-3"
    if kind is not None:
        raise InputError(
            f"{kind}: expected whole weights in every process (DDP, ZeRO-1 and 2) or FSDP 2, since a student is "
            f"measured and saved outside of the wrapper that {kind} puts around it; set fsdp_version: 2"
        )
    if run.cached_gradients and (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        raise InputError(
            "run.cached_gradients: expected whole weights in every process, since each chunk reads them anew, got "
            "shards (FSDP or DeepSpeed); train with DDP (torchrun) or set it to false"
        )
    if run.torch_compile and (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        raise InputError(
            "run.torch_compile: expected whole weights in every process (DDP, torchrun), got shards (FSDP or DeepSpeed)"
        )


@contextmanager
def whole_weights(student: D2LLM) -> Iterator[None]:
    """Every process holds all of a student's weights inside the block, so that any part of it can be called.

    All processes enter it. Where nothing is sharded nothing happens.
    """
    sharded = [module for module in student.modules() if isinstance(module, FSDPModule)]
    if sharded:
        with torch.no_grad():
            # FSDP makes its modules ready at the first call of the outermost one, which must come before any other.
            student(query_vectors=torch.zeros(1, student.dim, device=student.device))
    for module in sharded:
        module.unshard()
    try:
        yield
    finally:
        for module in sharded:
            module.reshard()
