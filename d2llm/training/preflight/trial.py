"""What a step of a run costs, found out beforehand by steps that change nothing."""

import os
import resource
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from d2llm.data.example import Example
from d2llm.training.plan import choose_negatives

if TYPE_CHECKING:
    from d2llm.training.trainer import DistillationTrainer

#: Batches that are tried, fewer where they take longer than so many seconds.
TRIALS = 3
ENOUGH = 60
#: Numbers that AdamW keeps of every weight.
_ADAM_STATES = 2


@dataclass(frozen=True)
class StepCost:
    """Expected cost of an optimizer step on this machine."""

    #: The median of the trials times the batches of a step.
    seconds: float
    #: Most memory of the process (of the GPU, where there is one) until the trials ended, and what AdamW will add.
    bytes: int
    #: What there is of that memory.
    available: int


def try_steps(trainer: "DistillationTrainer", examples: Sequence[Example]) -> StepCost:
    """Run forward and backward on the first batches of the run and forget what came of it.

    Nothing is stepped: weights stay as they are, gradients are dropped, the random state is put back, so that the run
    that follows has the bits of one without trials. Measuring the first real steps instead would cost nothing, but
    could not be had without training.

    Args:
        trainer: of the run, before it trains.
        examples: its training examples, without false negatives.
    """
    student, device, config = trainer.student, trainer.args.device, trainer.config
    batches = trainer.plan.batches(0, trainer.args.process_index)[:TRIALS].tolist()
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    seconds = []
    with torch.random.fork_rng([device] if cuda else []), _as_in_training(trainer):
        for batch in batches:
            drawn = [choose_negatives(examples[i], config.data.negatives, config.run.seed) for i in batch]
            inputs = trainer.collator(drawn)
            start = time.perf_counter()
            trainer.training_step(student, inputs)
            if cuda:
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - start)
            # Processes that gather take each step together.
            if trainer.accelerator.gather(torch.tensor([sum(seconds)], device=device)).max() > ENOUGH:
                break
    trained = sum(p.numel() * p.element_size() for p in student.parameters() if p.requires_grad)
    return StepCost(
        statistics.median(seconds) * config.run.accumulation_steps,
        (torch.cuda.max_memory_allocated(device) if cuda else _peak_of_process()) + _ADAM_STATES * trained,
        torch.cuda.mem_get_info(device)[1] if cuda else _memory_of_machine(),
    )


@contextmanager
def _as_in_training(trainer: "DistillationTrainer") -> Iterator[None]:
    """The state in which the trainer calls ``training_step``, and afterwards the one before."""
    student: Any = trainer.student
    training = student.training
    trainer.current_gradient_accumulation_steps = trainer.config.run.accumulation_steps
    # Older versions of transformers have the second name only.
    name = (
        "activation_checkpointing" if hasattr(student, "activation_checkpointing_enable") else "gradient_checkpointing"
    )
    recomputes = trainer.config.run.gradient_checkpointing
    if recomputes:
        getattr(student, f"{name}_enable")({"use_reentrant": False})
    try:
        yield
    finally:
        if recomputes:
            getattr(student, f"{name}_disable")()
        student.zero_grad(set_to_none=True)
        student.train(training)
        trainer.part_sums, trainer.part_steps = {}, 0


def _peak_of_process() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _memory_of_machine() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
