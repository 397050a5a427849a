"""How a teacher learns from its student's own mistakes: a table in docs/quality.md.

    python -m benchmarks.teacher_curve --write

The shipped teacher is tuned further on functions of the standard library, every negative one of the ten passages that
the shipped student's IEM finds best, and is asked along the way to order the student's best ten of validation queries
anew. The learning rate falls to 0 with the last step, so that earlier rows are of a run under way. Killed, it goes on.
"""

import argparse
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from benchmarks.document import put
from benchmarks.quality import BEST, DOCUMENT, interval, over_library, reordered
from d2llm.bm25 import top_indices
from d2llm.data.docstrings import standard_library_functions, standard_library_pairs
from d2llm.data.example import Example, text_id, text_key
from d2llm.data.positives import KnownPositives
from d2llm.demo.corpus import unseen_texts, validation_pairs
from d2llm.demo.library import library_vectors
from d2llm.evaluation.systems import iem_scores
from d2llm.shipped import BASE_MODEL, STUDENT, TEACHER
from d2llm.student import D2LLM
from d2llm.tasks import ASYM
from d2llm.teacher.adapter import save_adapter, with_adapter
from d2llm.teacher.model import Teacher
from d2llm.teacher.tuning import TuningConfig, tune

NEGATIVES = 3
#: Validation queries that are asked; every one of them costs ten judgements a row.
QUERIES = 200


class Keep(TrainerCallback):
    """Leaves the adapter of some steps in a folder."""

    def __init__(self, teacher: Teacher, folder: Path, steps: Sequence[int]) -> None:
        self.teacher, self.folder, self.steps = teacher, folder, steps

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save the adapter, where this step is one of them."""
        if state.global_step in self.steps:
            save_adapter(self.teacher.decoder, self.teacher.settings(), self.folder / f"{state.global_step}")


def logits_of(student: D2LLM, queries: Sequence[str], passages: list[str]) -> np.ndarray:
    """(Nq, Np) logits of the student's IEM over the library."""
    vectors = torch.from_numpy(library_vectors(student, passages))
    return iem_scores(student, student.encode(list(queries), "query", convert_to="torch"), vectors, ASYM)


def groups(student: D2LLM, passages: list[str], count: int, seed: int = 0) -> list[Example]:
    """A positive and negatives that the student takes for good ones, no text of them one of validation or test."""
    unseen = unseen_texts(standard_library_functions())
    every = standard_library_pairs()
    seen = [pair for pair in every if not {text_key(pair.query), text_key(pair.positive)} & unseen]
    chosen = random.Random(seed).sample(seen, min(count, len(seen)))
    known, keys = KnownPositives(every), list(map(text_key, passages))
    allowed = np.array([key not in unseen for key in keys])
    logits = np.where(allowed, logits_of(student, [pair.query for pair in chosen], passages), -np.inf)
    made = []
    for pair, row in zip(chosen, logits, strict=True):
        positives = set(known.of(pair.query))
        best = [i for i in top_indices(row, BEST + len(positives)) if keys[i] not in positives][:BEST]
        drawn = random.Random(f"{seed}:{text_id(pair.query)}").sample(best, NEGATIVES)
        made.append(replace(pair, negatives=tuple(passages[i] for i in drawn), scores=None))
    return made


def shipped() -> Teacher:
    """The shipped teacher, its adapter merged, so that another one can be put on it."""
    teacher = Teacher.from_pretrained(BASE_MODEL, TEACHER, dtype=torch.float32)
    teacher.decoder = teacher.decoder.merge_and_unload()
    return teacher


def main(arguments: list[str] | None = None) -> int:
    """Tune, ask, and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.teacher_curve", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--work", type=Path, default=Path("runs/teacher-curve"), help="folder of checkpoints and scores"
    )
    parser.add_argument("--steps", type=int, nargs="+", default=[50, 100, 200], help="when to ask; the last ends it")
    parser.add_argument("--queries", type=int, default=QUERIES)
    parser.add_argument("--write", action="store_true", help="bring docs/quality.md up to it")
    asked = parser.parse_args(arguments)
    student = D2LLM.from_pretrained(STUDENT, dtype=torch.float32)
    data = over_library(validation_pairs()[: asked.queries])
    config = TuningConfig(steps=asked.steps[-1], save_steps=25)
    adapters = asked.work / "adapters"
    if not (adapters / str(asked.steps[-1])).is_dir():
        teacher = shipped()
        learnt = groups(student, list(data.passages), config.steps * config.groups_per_step)
        tune(teacher, learnt, asked.work / "tuning", config, [Keep(teacher, adapters, asked.steps)])
    logits = logits_of(student, data.queries, list(data.passages))
    first = data.reciprocal_ranks(logits)
    lines = [
        "| steps | teacher | over IEM, 95 % | teacher + IEM | over IEM, 95 % |",
        "| ---: | ---: | ---: | ---: | ---: |",
        f"| IEM alone | {first.mean():.3f} |  |  |  |",
    ]
    for step in (0, *asked.steps):
        teacher = shipped()
        if step:
            teacher.decoder = with_adapter(teacher.decoder, adapters / str(step))
        found = reordered(teacher.eval(), data, logits, asked.work / f"judged-{step}")
        cells = [f"{ranks.mean():.3f} | {interval(ranks, first)}" for ranks in found]
        lines.append(f"| {step} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    print(*lines, sep="\n")
    if asked.write:
        put(DOCUMENT, {"teacher-curve": lines})
    return 0


if __name__ == "__main__":
    sys.exit(main())
