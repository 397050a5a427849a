"""What each choice of the shipped student's recipe is worth: students by the recipe, one change at a time.

A third of the recipe's steps, all of the way: which shows what a change does in a third of the time. One seed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.quality.asked import Asked
from benchmarks.quality.measured import IEM, WAYS, Measured, interval
from benchmarks.quality.sets import sets
from benchmarks.quality.trained import examples
from d2llm.demo.recipe import FULL, LLM_STUDENT, STUDENT, TRAINING
from d2llm.demo.training import train_phase
from d2llm.loss_weights import LossWeights
from d2llm.shipped import BASE_MODEL, STUDENT_MODEL
from d2llm.student import D2LLM
from d2llm.training.start import fit_warm_start

PART = "choices"
SETS = ("docstrings", "everyday")
STEPS = TRAINING.steps // 3


@dataclass(frozen=True)
class Choice:
    """How a student differs from the recipe's."""

    architecture: Mapping[str, Any] = field(default_factory=dict)
    base: str = STUDENT_MODEL
    loss: LossWeights = TRAINING.loss
    #: Whether the pooling learns, which starts as the mean.
    pools: bool = True
    steps: int = STEPS

    def make(self, asked: Asked, folder: Path) -> None:
        """Train the student and write it to ``folder/student``; killed, it goes on."""
        phase = replace(
            TRAINING, steps=self.steps, warmup_steps=TRAINING.warmup_steps // 3, save_steps=20, loss=self.loss
        )
        student = D2LLM.create(self.base, **{**STUDENT, **self.architecture})
        student.pma.requires_grad_(self.pools)
        given = examples(asked.work)
        fit_warm_start(student, given, phase.seed)
        if self.steps:
            train_phase(student, phase, given, folder / "checkpoints", resume=True)
        student.save_pretrained(folder / "student")


#: The first is what the others are held against.
CHOICES: dict[str, Choice] = {
    "the recipe": Choice(),
    "not trained": Choice(steps=0),
    "the encoder frozen": Choice({"lora_r": 0}),
    "the encoder trained itself, without LoRA": Choice(FULL),
    "mean pooling": Choice(pools=False),
    "without the cosine's loss": Choice(loss=replace(TRAINING.loss, cosine=0.0)),
    **{f"{layers} of 6 layers": Choice({"hidden_layer": layers}) for layers in (2, 4)},
    **{f"F = {width}": Choice({"iem_hidden": width}) for width in (128, 1024)},
    "on SmolLM2's first 8 layers": Choice({"num_layers": LLM_STUDENT["num_layers"]}, base=BASE_MODEL),
}


def blocks(asked: Asked) -> dict[str, list[str]]:
    """Train and measure what is not there yet; the table of every choice that is."""
    measured, known = Measured(asked.work, PART), sets(None)
    for name in asked.only or CHOICES:
        folder = asked.work / PART / name
        if not (folder / "student" / "config.json").is_file():
            CHOICES[name].make(asked, folder)
        for each in SETS:
            measured.measure(each, known[each](), {name: folder / "student"})
    return {PART: table(measured)}


def table(measured: Measured) -> list[str]:
    """Markdown lines: MRR by every way to score, and by IEM what a choice is over the first."""
    head = [cell for name in SETS for cell in (f"{name}, cosine", "IEM", "hybrid", "IEM over the first, 95 %")]
    lines = [f"| choice | {' | '.join(head)} |", f"| --- |{' ---: |' * len(head)}"]
    first = next(iter(CHOICES))
    for name in CHOICES:
        cells = []
        for each in SETS:
            found = [measured.ranks(each, f"{name}, {way}") for way in WAYS]
            compared = measured.ranks(each, f"{first}, {IEM}")
            if compared is None or any(ranks is None for ranks in found):
                break
            cells += [f"{ranks.mean():.3f}" for ranks in found if ranks is not None]
            cells.append("" if name == first else interval(found[WAYS.index(IEM)], compared))
        else:
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines
