"""A short tuning that can kill its process."""

import os
import signal
from pathlib import Path

from transformers import TrainerCallback

from d2llm.data.example import Example
from d2llm.teacher.model import Teacher
from d2llm.teacher.tuning import TuningConfig, tune

CONFIG = TuningConfig(
    steps=9, groups_per_step=3, learning_rate=1e-2, warmup_steps=1, lora_r=4, lora_alpha=8, save_steps=3, bf16=False
)
GROUPS = [Example(f"the file {i}", f"a socket {i}", (f"server {i}" * (1 + i % 3), f"{i}")) for i in range(10)]


class Steps(TrainerCallback):
    """Notes the steps taken, and kills the process after a number of them, as a crash would."""

    def __init__(self, kill_at: int) -> None:
        self.kill_at = kill_at
        self.seen: list[int] = []

    def on_step_begin(self, args: object, state: object, control: object, **_: object) -> None:
        if state.global_step == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    # Of the last step: its checkpoint is there, and the adapter is not.
    on_train_end = on_step_begin

    def on_step_end(self, args: object, state: object, control: object, **_: object) -> None:
        self.seen.append(state.global_step)


def fresh(model: str) -> Teacher:
    return Teacher.from_pretrained(model, query_length=20, passage_length=30)


def tune_steps(model: str, output: Path, kill_at: int = -1) -> tuple[Teacher, list[int]]:
    """Tune 9 steps, 4 an epoch, a checkpoint every 3: the teacher and the steps that were taken."""
    steps = Steps(kill_at)
    return tune(fresh(model), GROUPS, output, CONFIG, callbacks=[steps]), steps.seen
