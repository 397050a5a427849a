"""How a teacher learns from its student's own mistakes.

The shipped teacher is tuned anew as ``python -m d2llm.demo.make`` tunes it, and is asked along the way to order the
shipped student's best ten of validation queries anew. The learning rate falls to 0 with the last step, so that earlier
rows are of a run under way.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from benchmarks.quality.asked import Asked
from benchmarks.quality.last_stage import reordered
from benchmarks.quality.measured import interval
from benchmarks.quality.sets import over_library
from benchmarks.quality.trained import examples
from d2llm.demo.corpus import validation_pairs
from d2llm.demo.library import library_vectors
from d2llm.demo.recipe import TEACHER
from d2llm.demo.teacher import FIRST, tune_teacher
from d2llm.evaluation.systems import iem_scores
from d2llm.shipped import BASE_MODEL
from d2llm.student import D2LLM
from d2llm.tasks import ASYM
from d2llm.teacher.adapter import save_adapter
from d2llm.teacher.model import Teacher

PART = "teacher-curve"
#: Steps of the second tuning at which it is asked, beside its start; the last ends it.
STEPS = tuple(range(TEACHER.second.steps // 4, TEACHER.second.steps + 1, TEACHER.second.steps // 4))
#: Validation queries that are asked; every one of them costs ten judgements a row.
QUERIES = 200


class Keep(TrainerCallback):
    """Leaves the adapter of STEPS in a folder."""

    def __init__(self, teacher: Teacher, folder: Path) -> None:
        self.teacher, self.folder = teacher, folder

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save the adapter, where this step is one of them."""
        if state.global_step in STEPS:
            save_adapter(self.teacher.decoder, self.teacher.settings(), self.folder / f"{state.global_step}")


def logits_of(student: D2LLM, queries: Sequence[str], passages: list[str]) -> np.ndarray:
    """(Nq, Np) logits of the student's IEM over the library."""
    vectors = torch.from_numpy(library_vectors(student, passages))
    return iem_scores(student, student.encode(list(queries), "query", convert_to="torch"), vectors, ASYM)


def blocks(asked: Asked) -> dict[str, list[str]]:
    """Tune what is not tuned yet, in an hour, and ask."""
    student = D2LLM.from_pretrained(asked.student, dtype=torch.float32)
    data = over_library(validation_pairs()[:QUERIES])
    folder = asked.work / PART
    adapters, tunings = folder / "adapters", folder / "tunings"
    if not (adapters / str(STEPS[-1])).is_dir():
        tune_teacher(student, examples(asked.work), tunings, lambda teacher: [Keep(teacher, adapters)])
    logits = logits_of(student, data.queries, list(data.passages))
    first = data.reciprocal_ranks(logits)
    lines = [
        "| steps | teacher | over IEM, 95 % | teacher + IEM | over IEM, 95 % |",
        "| ---: | ---: | ---: | ---: | ---: |",
        f"| IEM alone | {first.mean():.3f} |  |  |  |",
    ]
    for step in (0, *STEPS):
        adapter = adapters / str(step) if step else tunings / FIRST
        teacher = Teacher.from_pretrained(BASE_MODEL, adapter, dtype=torch.float32)
        found = reordered(teacher, data, logits, folder / f"judged-{step}")
        cells = [f"{ranks.mean():.3f} | {interval(ranks, first)}" for ranks in found]
        lines.append(f"| {step} | {' | '.join(cells)} |")
    return {PART: lines}
