"""A short run that can kill its process."""

import os
import signal
from pathlib import Path

from training_setup import make_config, make_examples
from transformers import TrainerCallback

from d2llm.student import D2LLM
from d2llm.training import DistillationTrainer
from d2llm.training.run import prepare_folder


class KillAt(TrainerCallback):
    """Kill the process at the start of a step, as a crash would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: object, state: object, control: object, **_: object) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)

    # Of the last step: its checkpoint is there, and what the run was for is not.
    on_train_end = on_step_begin


class StepLog(TrainerCallback):
    """The numbers of the steps that were taken."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_step_end(self, args: object, state: object, control: object, **_: object) -> None:
        self.seen.append(state.global_step)


def run(base_model: str, output: Path, kill_at: int = -1, resume: bool = False) -> list[int]:
    """Train 14 steps, 6 an epoch, with dropout; SIGKILL this process after ``kill_at`` of them.

    Returns:
        The numbers of the steps that were taken.
    """
    # Saved every 4 steps: the checkpoint that is resumed lies inside an epoch.
    config = make_config(base_model, output, max_steps=14, eval_steps=4, save_steps=4)
    checkpoint = prepare_folder(config, resume)
    student = D2LLM.create(base_model, **config.student)
    steps = StepLog()
    trainer = DistillationTrainer(student, config, make_examples(), callbacks=[KillAt(kill_at), steps])
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    trainer.save_model()
    # A file each: what processes print to one pipe interleaves.
    (output / f"fingerprint-{trainer.args.process_index}").write_text(student.fingerprint())
    return steps.seen
