"""Evaluating a run at both its ends: its start is a candidate for the best step, and so is its last one."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

if TYPE_CHECKING:
    from d2llm.training.trainer import DistillationTrainer


class WatchBothEnds(TrainerCallback):
    """Evaluates before the first step, keeping ``checkpoint-0``, and after the last one."""

    def __init__(self, trainer: "DistillationTrainer") -> None:
        self.trainer = trainer

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Make the start the best step so far, as it is written and evaluated before anything is learnt."""
        # A resumed run has a best step already.
        if state.best_metric is not None:
            return
        trainer = self.trainer
        trainer._determine_best_metric(trainer.evaluate(), trial=None)
        # The trainer itself takes step 0 for no step.
        state.best_model_checkpoint = str(Path(trainer.config.output_dir) / "checkpoint-0")
        trainer._save_checkpoint(trainer.student, trial=None)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The last step may be no multiple of the interval."""
        if state.global_step >= state.max_steps:
            control.should_evaluate = True

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Keep the step that early stopping ends at: a run that goes on from one before would take it again."""
        control.should_save |= control.should_training_stop


@dataclass(frozen=True)
class Outcome:
    """What came of a run: validation MRR at its start and at the step that is kept, None where none was measured."""

    step: int
    mrr: float | None
    start_mrr: float | None

    @classmethod
    def of(cls, state: TrainerState) -> "Outcome":
        """The outcome of a run that ended in this state."""
        found = {entry["step"]: float(entry["eval_mrr"]) for entry in state.log_history if "eval_mrr" in entry}
        step = (state.best_global_step or 0) if found else state.global_step
        return cls(step, found.get(step), found.get(0))

    def __str__(self) -> str:
        if self.mrr is None or self.start_mrr is None:
            return f"the student of step {self.step}; whether it is better than at its start was not measured"
        if self.step == 0:
            return f"validation MRR {self.mrr:.4f} at the start and never above: the student is as it began"
        return f"validation MRR {self.start_mrr:.4f} at the start, {self.mrr:.4f} at step {self.step}, which is kept"
