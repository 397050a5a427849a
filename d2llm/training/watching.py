"""Watching a run: both its ends are candidates for the best step, and it stops where nothing gets better."""

from dataclasses import dataclass
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from d2llm.checkpoints import METRIC, waited


class Watch(TrainerCallback):
    """Evaluates before the first step, keeping ``checkpoint-0``, and after the last one; stops a run early.

    It remembers nothing that the trainer's state does not hold, so that a resumed run goes on waiting.
    """

    def __init__(self, trainer: Trainer, patience: int | None) -> None:
        """Args: the run's trainer, and evaluations without a better MRR that end it, None for no end."""
        self.trainer = trainer
        self.patience = patience

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Make the start the best step so far, as it is written and evaluated before anything is learnt."""
        # A resumed run has a best step already.
        if state.best_metric is not None:
            return
        trainer = self.trainer
        trainer._determine_best_metric(trainer.evaluate(), trial=None)
        # The trainer itself takes step 0 for no step.
        state.best_model_checkpoint = f"{args.output_dir}/checkpoint-0"
        trainer._save_checkpoint(trainer.model_wrapped, trial=None)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The last step may be no multiple of the interval."""
        if state.global_step >= state.max_steps:
            control.should_evaluate = True

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """Stop a run that has waited long enough, and keep that step: one that goes on from before would take it again.

        The trainer looks for the best step afterwards only.
        """
        if self.patience is None or state.best_metric is None or given["metrics"][METRIC] > state.best_metric:
            return
        if waited(state.log_history, state.best_global_step) >= self.patience:
            control.should_training_stop = control.should_save = True


@dataclass(frozen=True)
class Outcome:
    """What came of a run: validation MRR at its start and at the step that is kept, None where none was measured."""

    step: int
    mrr: float | None
    start_mrr: float | None

    @classmethod
    def of(cls, state: TrainerState) -> "Outcome":
        """The outcome of a run that ended in this state."""
        found = {entry["step"]: float(entry[METRIC]) for entry in state.log_history if METRIC in entry}
        step = (state.best_global_step or 0) if found else state.global_step
        return cls(step, found.get(step), found.get(0))

    def __str__(self) -> str:
        if self.mrr is None or self.start_mrr is None:
            return f"the student of step {self.step}; whether it is better than at its start was not measured"
        if self.step == 0:
            return f"validation MRR {self.mrr:.4f} at the start and never above: the student is as it began"
        return f"validation MRR {self.start_mrr:.4f} at the start, {self.mrr:.4f} at step {self.step}, which is kept"
