"""What the batches of a run hold: pairs that the teacher has judged, negatives that a loss uses, columns that count.

Long runs are surveyed by batches that lie evenly over them, so that it takes seconds whatever the data.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from d2llm.data.example import Example, text_id
from d2llm.loss_weights import LossWeights
from d2llm.training.collator import Scores, judge_of
from d2llm.training.plan import Plan, choose_negatives

if TYPE_CHECKING:
    from d2llm.training.trainer import DistillationTrainer

#: In-batch pairs that a survey looks at, about.
PAIRS = 1 << 16
#: Pairs without a score that are named.
_SHOWN = 3


@dataclass
class Coverage:
    """Pairs that meet and those that the teacher has judged."""

    met: int = 0
    judged: int = 0
    #: Some that it has not.
    missing: list[str] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Judged ones among those that meet; 1 where none meet."""
        return self.judged / self.met if self.met else 1.0

    def count(self, example: Example, passage: str, judged: bool) -> None:
        """Add a pair."""
        self.met += 1
        self.judged += judged
        if not judged and len(self.missing) < _SHOWN:
            self.missing.append(f"{place(example)}: {example.query[:60]!r} with {passage[:60]!r}")


@dataclass
class Survey:
    """Counts over the batches looked at."""

    batches: int = 0
    #: Queries with their own positive and drawn negatives, where there are some.
    groups: Coverage = field(default_factory=Coverage)
    #: Queries with the positives of others that are not masked; counted where there is a table of scores.
    in_batch: Coverage = field(default_factory=Coverage)
    #: In-batch columns beside a query's own, and those of them that are not masked.
    columns: int = 0
    open_columns: int = 0
    #: Hard negatives drawn, those that the teacher has judged together with their positive, and those no loss uses.
    negatives: int = 0
    judged_negatives: int = 0
    unused_negatives: int = 0
    #: Groups whose features the teacher has compared.
    compared: int = 0


def survey(trainer: "DistillationTrainer", examples: Sequence[Example]) -> Survey:
    """Look at the batches of a run: at all of them, or at as many as :data:`PAIRS` allow.

    Args:
        trainer: of the run; its plan, teacher and weights are read.
        examples: its training examples, without false negatives. Those that a run will mine are not among them.
    """
    found = Survey()
    collator, config = trainer.collator, trainer.config
    for keys in _batches(trainer.plan):
        batch = [choose_negatives(examples[i], config.data.negatives, config.run.seed, epoch) for epoch, i in keys]
        found.batches += 1
        for example in batch:
            _count_group(found, example, collator.teacher, config.loss)
        masked = collator.known.mask([e.query for e in batch], [e.positive for e in batch])
        np.fill_diagonal(masked, True)
        # Of a huge batch some rows are enough.
        rows = min(len(batch), max(1, PAIRS // len(batch)))
        found.columns += rows * (len(batch) - 1)
        found.open_columns += int((~masked[:rows]).sum())
        if collator.teacher is not None:
            for i, j in np.argwhere(~masked[:rows]):
                passage = batch[j].positive
                found.in_batch.count(batch[i], passage, _judged(collator.teacher, batch[i], passage))
    return found


def place(example: Example) -> str:
    """Where an example stands, for messages."""
    return "an example" if example.line is None else f"line {example.line}"


def _batches(plan: Plan) -> Iterator[list[tuple[int, int]]]:
    """(epoch, index) keys of batches that lie evenly over the run."""
    size = plan.shared
    total = plan.all_updates * plan.run.accumulation_steps * (plan.run.batch_size * plan.world_size // size)
    every = max(1, math.ceil(total * size * size / PAIRS))
    number = 0
    for epoch, steps in enumerate(plan.epochs()):
        batches = steps.reshape(-1, size)
        for batch in batches[-number % every :: every].tolist():
            yield [(epoch, index) for index in batch]
        number += len(batches)


def _count_group(
    found: Survey, example: Example, teacher: Scores | Mapping[str, Scores] | None, weights: LossWeights
) -> None:
    """Add a query with its own positive and the negatives drawn for it."""
    if not example.negatives:
        return
    if teacher is None:
        judged, compared = [example.scores is not None] * len(example.passages), False
    else:
        judged = [_judged(teacher, example, passage) for passage in example.passages]
        ids = [text_id(passage) for passage in example.passages]
        judge = judge_of(teacher, example.task)
        compared = judge is not None and judge.relation(text_id(example.query), ids) is not None
    found.compared += compared
    for passage, is_judged in zip(example.passages, judged, strict=True):
        found.groups.count(example, passage, is_judged)
    imitated = (
        weights.alpha * (1 - weights.label_share)
        or weights.beta
        or weights.gamma
        or (weights.eta and compared)
        or (weights.rank and weights.rank_weight)
    )
    for is_judged in judged[1:]:
        by_teacher = is_judged and judged[0]
        found.negatives += 1
        found.judged_negatives += by_teacher
        labelled = weights.labels * (weights.label_share if by_teacher else 1)
        found.unused_negatives += not (labelled or (by_teacher and imitated))


def _judged(teacher: Scores | Mapping[str, Scores] | None, example: Example, passage: str) -> bool:
    judge = judge_of(teacher, example.task)
    return judge is not None and judge.logits(text_id(example.query), text_id(passage)) is not None
