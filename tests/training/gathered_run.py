"""One process of two that train together."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import interrupted_run
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from training_setup import make_config, make_examples

from d2llm.student import D2LLM
from d2llm.training import DistillationTrainer


class Judge:
    """A teacher that has judged every pair and compared every group there may be."""

    header: ClassVar[dict[str, Any]] = {}

    def logits(self, query_id: str, passage_id: str) -> tuple[float, float]:
        return hashlib.sha256((query_id + passage_id).encode()).digest()[0] / 32 - 4, 0.0

    def relation(self, query_id: str, passage_ids: Sequence[str]) -> np.ndarray:
        return np.eye(len(passage_ids), dtype=np.float32)


def gradients(base_model: str, output: Path, batch_size: int, cached: bool, gather: bool = True) -> dict[str, Tensor]:
    """The gradients of a run's first step, every loss in it, and the loss; an example has 0 to 2 negatives."""
    chunks = {"cached_gradients": cached, "texts_per_chunk": 3}
    config = make_config(base_model, output, batch_size=batch_size, gather_across_devices=gather, **chunks)
    config = replace(
        config,
        student={**config.student, "lora_dropout": 0.0, "init": "xavier"},
        loss=replace(config.loss, cosine=1.0, gamma=1.0, eta=1.0, label_share=0.5, rank="adr_mse"),
    )
    student = D2LLM.create(base_model, **config.student).double()
    trainer = DistillationTrainer(student, config, make_examples(), teacher=Judge())
    model = trainer.accelerator.prepare(trainer.student)
    trainer.current_gradient_accumulation_steps = 1
    loss = trainer.training_step(model, next(iter(trainer.get_train_dataloader())))
    assert len(trainer.part_sums) == 8
    found = {name: p.grad for name, p in trainer.student.named_parameters() if p.grad is not None}
    return {"loss": loss, **found}


def run_gathered(base_model: str, output: Path) -> None:
    """Gradients of batches that two processes share and of ones that they do not, then a whole run."""
    for name, how in (("plain", (False, True)), ("cached", (True, True)), ("apart", (False, False))):
        found = gradients(base_model, output, 4, *how)
        save_file(found, output / f"{name}-{torch.distributed.get_rank()}.safetensors")
    interrupted_run.run(base_model, output)
