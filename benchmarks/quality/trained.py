"""Students that tables need beside the shipped one, and what they learn from: made at first, then kept."""

from dataclasses import replace
from pathlib import Path

from d2llm.data.example import Example
from d2llm.demo.corpus import kept_examples
from d2llm.demo.encoder import TRAINING_FILE, make, train
from d2llm.demo.recipe import STUDENT, TRAINING
from d2llm.shipped import STUDENT_MODEL
from d2llm.student import D2LLM
from d2llm.training.start import fit_warm_start


def examples(work: Path) -> list[Example]:
    """What the shipped student has learnt from."""
    return kept_examples(work / TRAINING_FILE)


def by_recipe(work: Path, seed: int) -> Path:
    """A student by the recipe of the shipped one, from another seed."""
    folder = work / "students" / str(seed)
    if not (folder / "student" / "config.json").is_file():
        make(folder, phase=replace(TRAINING, seed=seed))
    return folder / "student"


def drawn_back(work: Path, share: float) -> Path:
    """A student by the recipe that keeps another share of its way from the start, in float32."""
    folder = work / "students" / f"{share:.0%} of the way"
    if not (folder / "config.json").is_file():
        # All shares are of one training, whose last checkpoint is where the others go on from.
        train(examples(work), work / "students" / "way", share=share).save_pretrained(folder)
    return folder


def start(work: Path) -> Path:
    """The encoder as they all start: the cosine of its mean pooling, and an interaction module that has its order."""
    folder = work / "students" / "start"
    if not (folder / "config.json").is_file():
        student = D2LLM.create(STUDENT_MODEL, **STUDENT)
        fit_warm_start(student, examples(work), TRAINING.seed)
        student.save_pretrained(folder)
    return folder
