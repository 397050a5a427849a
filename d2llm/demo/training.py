"""One phase of training a student, with a progress bar and what it logged."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, ProgressCallback

from d2llm.data.example import Example
from d2llm.demo.recipe import Phase
from d2llm.student import D2LLM
from d2llm.teacher.scores import ScoreTable
from d2llm.training import DistillationTrainer
from d2llm.training.run import last_whole
from d2llm.training.vectors import TextVectors


class _Bar(ProgressCallback):
    """A progress bar that shows the newest loss in place of printing every log."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix(loss=logs["loss"])


def train_phase(
    student: D2LLM,
    phase: Phase,
    examples: Sequence[Example],
    output: Path,
    *,
    teacher: ScoreTable | None = None,
    vectors: TextVectors | None = None,
    resume: bool = False,
) -> list[dict[str, float]]:
    """Train ``student`` in place for one phase: the logged losses of every few steps, parts included.

    With a teacher there are all five losses; without one, the in-batch loss on the same batches. With ``vectors`` the
    interaction module alone is trained, on them. With ``resume`` it goes on from the newest checkpoint in
    ``output``; without, what is there is removed.
    """
    checkpoint = last_whole(output) if resume else None
    if not resume:
        shutil.rmtree(output, ignore_errors=True)
    config = phase.config(student.config.base_model, str(output))
    given = examples if teacher is not None else [Example(e.query, e.positive, task=e.task) for e in examples]
    trainer = DistillationTrainer(student, config, given, teacher=teacher, vectors=vectors)
    # Which of the two is there depends on transformers' verbosity.
    for default in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(default)
    trainer.add_callback(_Bar)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    student.eval()
    return [entry for entry in trainer.state.log_history if "loss" in entry]
