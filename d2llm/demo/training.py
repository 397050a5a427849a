"""The two phases in which a demonstration trains its students."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import ProgressCallback

from d2llm.data.example import Example
from d2llm.demo.recipe import StudentRecipe
from d2llm.student import D2LLM
from d2llm.teacher.scores import ScoreTable
from d2llm.training import DistillationTrainer
from d2llm.training.run import last_checkpoint


class _Bar(ProgressCallback):
    """A progress bar that shows the newest loss in place of printing every log."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix(loss=logs["loss"])


def train_phase(
    student: D2LLM,
    recipe: StudentRecipe,
    examples: Sequence[Example],
    output: Path,
    *,
    second: bool,
    teacher: ScoreTable | None = None,
    resume: bool = False,
) -> list[dict[str, float]]:
    """Train ``student`` in place for one phase: the logged losses of every few steps, parts included.

    With ``resume`` it goes on from the newest checkpoint in ``output``; without, what is there is removed.
    The second phase with a teacher has all five losses; without one, the in-batch loss on the same batches.
    """
    checkpoint = last_checkpoint(output) if resume else None
    if not resume:
        shutil.rmtree(output, ignore_errors=True)
    config = recipe.config(student.config.base_model, str(output), second)
    given = examples if teacher is not None else [Example(e.query, e.positive, task=e.task) for e in examples]
    trainer = DistillationTrainer(student, config, given, teacher=teacher)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(_Bar)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    student.eval()
    return [entry for entry in trainer.state.log_history if "loss" in entry]
