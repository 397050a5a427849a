"""A run with cached gradients and mined negatives that can kill its process."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from interrupted_run import KillAt
from training_setup import make_config, make_examples

from d2llm.student import D2LLM
from d2llm.training import DistillationTrainer
from d2llm.training.config import MiningConfig
from d2llm.training.run import prepare_folder


class Judge:
    """A teacher that has judged every pair there may be."""

    header: ClassVar[dict[str, Any]] = {}

    def logits(self, query_id: str, passage_id: str) -> tuple[float, float]:
        return hashlib.sha256((query_id + passage_id).encode()).digest()[0] / 32 - 4, 0.0

    def relation(self, query_id: str, passage_ids: Sequence[str]) -> None:
        return None


def run(
    base_model: str, output: Path, kill_at: int = -1, resume: bool = False, cached: bool = True, steps: int = 14
) -> None:
    """Train 14 steps, 3 an epoch, with dropout; negatives are mined at steps 5 and 10, checkpoints written every 4."""
    lengths = {"max_steps": steps, "eval_steps": 4, "save_steps": 4, "accumulation_steps": 2, "batch_size": 4}
    # Passages take several chunks.
    config = make_config(base_model, output, cached_gradients=cached, texts_per_chunk=6, **lengths)
    config = replace(config, mining=MiningConfig(every_steps=5, k=4))
    checkpoint = prepare_folder(config, resume)
    student = D2LLM.create(base_model, **config.student)
    examples = [replace(example, scores=None) for example in make_examples()]
    trainer = DistillationTrainer(student, config, examples, teacher=Judge(), callbacks=[KillAt(kill_at)])
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    trainer.save_model()


def run_both_ways(base_model: str, folder: Path) -> None:
    """A short run in ``plain``, and one with cached gradients in ``cached``."""
    for name in ("plain", "cached"):
        run(base_model, folder / name, cached=name == "cached", steps=6)
