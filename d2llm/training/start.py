"""What a run has before its first step: the split of its data, and a start that is fitted to it."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from d2llm.data.columns import columns_of
from d2llm.data.example import Example
from d2llm.data.jsonl import read_examples, write_examples
from d2llm.data.split import Split, split
from d2llm.data.validation import Validation
from d2llm.errors import MismatchError
from d2llm.student import D2LLM
from d2llm.student.configuration import FREE
from d2llm.training.config import DataConfig, TrainConfig
from d2llm.training.vectors import Computed

#: The held-out examples of a run that was given none, in its folder.
HELD_OUT = "validation.jsonl"


@dataclass(frozen=True)
class RunData:
    """What a run learns from and is watched on."""

    train: Sequence[Example]
    #: None where a run is not watched.
    held_out: list[Example] | None
    #: One sentence for the log.
    told: str

    @property
    def validation(self) -> dict[str, Validation] | None:
        """The held-out examples as queries to search with, by task."""
        return None if self.held_out is None else Validation.by_task(self.held_out)


def run_data(examples: Sequence[Example], data: DataConfig, seed: int) -> RunData:
    """The examples that a run trains on, and those that it is watched on: given, split off, or none.

    Raises:
        InputError: where nothing can be split off (see :func:`~d2llm.data.split.split`).
        MissingError, FormatError: for a file of held-out examples that is not there, or malformed.
    """
    parts = parted(examples, data, seed)
    if data.validation is not None:
        held_out = read_examples(data.validation)
        told = f"validation: {len(held_out)} examples of {data.validation}"
        queries = columns_of(parts.train).queries
        if shared := int(np.isin(columns_of(held_out).queries, queries).sum()):
            told += f"; {shared} of their queries are trained on too, so that what is measured flatters the student"
        return RunData(parts.train, held_out, told)
    if not parts.held_out:
        return RunData(parts.train, None, "validation: none, so that no best step is chosen and nothing stops early")
    held, given = (columns_of(some).count_tasks() for some in (parts.held_out, examples))
    counts = ", ".join(f"{held.get(task, 0)} of {count} {task}" for task, count in given.items())
    told = (
        f"validation: {counts} examples, held out by seed {seed}; they share no query and no positive with the others"
    )
    for task in given.keys() - held.keys():
        told += f"; too few of {task} stand apart, so that it is not watched"
    return RunData(parts.train, parts.held_out, told)


def parted(examples: Sequence[Example], data: DataConfig, seed: int) -> Split:
    """The examples of a run's file that it trains on, and those of them that it holds out, which may be none.

    Raises:
        InputError: where nothing can be split off.
    """
    if data.validation is not None or data.validation_share == 0:
        return Split(examples, [])
    return split(examples, data.validation_share, seed)


def keep_held_out(data: RunData, config: DataConfig, folder: Path) -> None:
    """Write what was split off into the run's folder."""
    if config.validation is None and data.held_out is not None:
        write_examples(folder / HELD_OUT, data.held_out)


def first_student(config: TrainConfig) -> D2LLM:
    """The student that a run starts from: a fresh one, or the one that ``init_from`` names.

    Raises:
        MismatchError: where the run asks for another architecture, or another base, than that student has.
        D2LLMError: if student or base are missing or malformed, or a field is unfit.
    """
    if config.init_from is None:
        assert config.base_model is not None
        return D2LLM.create(config.base_model, seed=config.run.seed, **config.student)
    asked: dict[str, Any] = dict(config.student)
    student = D2LLM.from_pretrained(config.init_from, **{name: asked[name] for name in asked.keys() & FREE})
    if config.base_model is not None:
        asked["base_model"] = config.base_model
    for name, value in asked.items():
        if value != (found := getattr(student.config, name)):
            field = name if name == "base_model" else f"student.{name}"
            raise MismatchError(
                f"{field}: expected {found!r}, which the student {config.init_from} was made with, got {value!r}; "
                "leave it out, or train a fresh student without init_from"
            )
    return student


def fit_warm_start(student: D2LLM, examples: Sequence[Example], seed: int, computed: Computed | None = None) -> None:
    """Let the interaction module start from the directions in which the embeddings of some texts vary most.

    Nothing is done where it starts otherwise, or keeps every direction anyway. What is ``computed`` of the examples
    spares their encoding.
    """
    iem = student.iem
    if student.config.init != "warm" or iem.dim < iem.hidden:
        return
    # Twice as many texts as there are directions to find, where there are so many.
    chosen = random.Random(seed).sample(examples, min(len(examples), iem.hidden))
    queries = list(dict.fromkeys(example.query for example in chosen))
    passages = list(dict.fromkeys(example.positive for example in chosen))
    if computed is None:
        kinds = (queries, "query"), (passages, "passage")
        sample = [student.encode(texts, kind, convert_to="torch") for texts, kind in kinds]
    else:
        sample = list(computed.embeddings(student, queries, passages))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        iem.reset_parameters("warm", sample=torch.cat(sample).to(student.device))
