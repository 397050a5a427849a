"""Which examples meet in which batch, and which of their hard negatives they bring.

Everything here is a function of the seed, the epoch and the data alone, so that a teacher can score beforehand
exactly the pairs that a run will meet, and a resumed run meets the same ones. It rests on raw Philox output and on
SHA-256, both fixed by definition, and not on a library's shuffle, which may change between versions.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler

from d2llm.data.columns import columns_of
from d2llm.data.example import Example, text_id, text_key
from d2llm.data.positives import KnownPositives
from d2llm.errors import InputError
from d2llm.training.config import DataConfig, RunConfig


@dataclass(frozen=True)
class Plan:
    """The batches of a run.

    Raises:
        InputError: if ``tasks`` has another length, for a batch or a number of processes below 1, or where the examples
            do not fill one step.
    """

    num_examples: int
    #: Its batch size, accumulation, seed and length are read.
    run: RunConfig
    #: Processes that train.
    world_size: int = 1
    #: The task of every example, to fill each step from one task; None mixes tasks.
    tasks: Sequence[str] | NDArray[np.uint8] | None = None

    def __post_init__(self) -> None:
        size, world = self.run.batch_size, self.world_size
        if size < 1 or world < 1:
            raise InputError(f"batch_size, world_size: expected at least 1 each, got {size} and {world}")
        if self.tasks is not None and len(self.tasks) != self.num_examples:
            raise InputError(f"tasks: expected {self.num_examples}, one an example, got {len(self.tasks)}")
        if max(self._sizes, default=0) < size * world:
            raise InputError(
                f"batch_size: expected at most the {self.num_examples} examples (of one task, where a batch has one "
                f"task) over {world} processes, got {size}"
            )

    @classmethod
    def of(cls, examples: Sequence[Example], run: RunConfig, data: DataConfig, world_size: int = 1) -> "Plan":
        """The plan of a run over ``examples``, in the order of the file that it reads."""
        tasks = columns_of(examples).tasks if data.one_task_batches else None
        return cls(len(examples), run, world_size, tasks)

    def epoch(self, number: int) -> np.ndarray:
        """Example indices of every batch of an epoch, counted from 0: (steps, world_size, batch_size) int64.

        Every example appears at most once; those that do not fill a last step wait for another epoch's shuffle.
        """
        step_size = self.run.batch_size * self.world_size
        draw = np.random.Philox(key=np.array([self.run.seed, number], dtype=np.uint64))
        order = np.argsort(draw.random_raw(self.num_examples), kind="stable").astype(np.int64, copy=False)
        groups = [order]
        if self.tasks is not None:
            drawn = np.asarray(self.tasks)[order]
            groups = [order[drawn == task] for task in np.unique(drawn)]
        steps = np.concatenate([each[: len(each) // step_size * step_size].reshape(-1, step_size) for each in groups])
        if self.tasks is not None:
            steps = steps[np.argsort(draw.random_raw(len(steps)), kind="stable")]
        return steps.reshape(-1, self.world_size, self.run.batch_size)

    @cached_property
    def steps(self) -> int:
        """Batches that a process takes in an epoch."""
        step_size = self.run.batch_size * self.world_size
        return sum(size // step_size for size in self._sizes)

    @cached_property
    def _sizes(self) -> list[int]:
        """Examples that may share a batch: of each task, or all."""
        if self.tasks is None:
            return [self.num_examples]
        return np.unique(np.asarray(self.tasks), return_counts=True)[1].tolist()

    @property
    def updates(self) -> int:
        """Optimizer steps of an epoch; the last one may have fewer batches than the others."""
        return math.ceil(self.steps / self.run.accumulation_steps)

    @property
    def all_updates(self) -> int:
        """Optimizer steps of the whole run."""
        run = self.run
        return math.ceil(run.epochs * self.updates) if run.max_steps is None else run.max_steps

    @property
    def shared(self) -> int:
        """Examples whose positives are each other's in-batch negatives: those of a process, or of all of them."""
        return self.run.batch_size * (self.world_size if self.run.gather_across_devices else 1)

    def batches(self, epoch: int, rank: int) -> np.ndarray:
        """Example indices that the process ``rank`` reads at every step of an epoch: (steps, shared) int64.

        Where processes gather, each reads all of a step, of which its share comes ``rank``-th.
        """
        made = self.epoch(epoch)
        return made.reshape(len(made), -1) if self.run.gather_across_devices else made[:, rank]

    def epochs(self) -> Iterator[np.ndarray]:
        """:meth:`epoch` after epoch until the run ends, the last one cut where it does."""
        whole, rest = divmod(self.all_updates, self.updates)
        for number in range(whole):
            yield self.epoch(number)
        if rest:
            yield self.epoch(whole)[: rest * self.run.accumulation_steps]


def in_batch_pairs(examples: Sequence[Example], plan: Plan) -> Iterator[tuple[int, int]]:
    """Pairs (i, j) that meet in a batch of a run: query of example i, positive of example j, i != j.

    Each pair of texts comes once, however often it meets; known positives of a query are left out, since the losses
    mask them.
    """
    known = KnownPositives(examples)
    keys = [text_key(example.positive) for example in examples]
    queries = [text_id(example.query) for example in examples]
    positives = [text_id(example.positive) for example in examples]
    seen: set[tuple[str, str]] = set()
    for epoch in plan.epochs():
        for batch in epoch.reshape(-1, plan.shared).tolist():
            for i in batch:
                masked = known.of(examples[i].query)
                for j in batch:
                    pair = (queries[i], positives[j])
                    if pair not in seen and keys[j] not in masked:
                        seen.add(pair)
                        yield i, j


def choose_negatives(example: Example, count: int, seed: int = 0, epoch: int = 0) -> Example:
    """The example with at most ``count`` of its hard negatives, drawn anew for every epoch.

    The draw depends on the texts, the seed and the epoch, and not on the order of the negatives.

    Raises:
        InputError: for a negative count.
    """
    if count < 0:
        raise InputError(f"count: expected at least 0, got {count}")
    key = f"{seed}:{epoch}:{text_id(example.query)}:"
    draws = [hashlib.sha256((key + text_id(negative)).encode()).digest() for negative in example.negatives]
    kept = sorted(range(len(draws)), key=draws.__getitem__)[:count]
    return example.with_negatives(kept)


class BatchKey(NamedTuple):
    """One example of one batch: its epoch, the optimizer step that it serves and its number among all."""

    epoch: int
    update: int
    example: int


class EpochExamples(Dataset[Example]):
    """Examples by key, each with the hard negatives of that epoch."""

    def __init__(self, examples: Sequence[Example], negatives: int, seed: int) -> None:
        """Args: the examples, hard negatives K of each at most, and the seed of the run."""
        self.examples = examples
        self.negatives = negatives
        self.seed = seed

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, key: BatchKey) -> Example:
        return choose_negatives(self.examples[key.example], self.negatives, self.seed, key.epoch)


class PlannedBatches(Sampler[list[BatchKey]]):
    """Batch sampler that yields one process's keys in the order of a plan."""

    def __init__(self, plan: Plan, rank: int, current_epoch: Callable[[], int]) -> None:
        """Make the sampler.

        Args:
            plan: the run's.
            rank: which process's batches to yield.
            current_epoch: asked whenever iteration starts, so that a resumed run needs no other signal.
        """
        self.plan = plan
        self.rank = rank
        self.current_epoch = current_epoch

    def __len__(self) -> int:
        return self.plan.steps

    def __iter__(self) -> Iterator[list[BatchKey]]:
        epoch = self.current_epoch()
        for number, batch in enumerate(self.plan.batches(epoch, self.rank)):
            update = epoch * self.plan.updates + number // self.plan.run.accumulation_steps
            yield [BatchKey(epoch, update, index) for index in batch.tolist()]
