"""A run with cached gradients and mined negatives that can kill itself; as a script, BASE OUTPUT KILL_AT [CACHED...].

Each CACHED (0 or 1) is a run in a folder of that name; more than one are short.
"""

import hashlib
import sys
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
    config = make_config(base_model, output, cached_gradients=cached, texts_per_chunk=3, **lengths)
    config = replace(config, mining=MiningConfig(every_steps=5, k=4))
    checkpoint = prepare_folder(config, resume)
    student = D2LLM.create(base_model, **config.student)
    examples = [replace(example, scores=None) for example in make_examples()]
    trainer = DistillationTrainer(student, config, examples, teacher=Judge(), callbacks=[KillAt(kill_at)])
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    trainer.save_model()


if __name__ == "__main__":
    folder = Path(sys.argv[2])
    for each in sys.argv[4:]:
        run(sys.argv[1], folder / each, int(sys.argv[3]), cached=each == "1", steps=14 if len(sys.argv) == 5 else 6)
