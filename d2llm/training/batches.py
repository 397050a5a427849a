"""Which examples meet in which batch, and which of their hard negatives they bring.

Everything here is a function of the seed, the epoch and the data alone, so that a teacher can score beforehand
exactly the pairs that a run will meet, and a resumed run meets the same ones. It rests on raw Philox output and on
SHA-256, both fixed by definition, and not on a library's shuffle, which may change between versions.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from torch.utils.data import Dataset, Sampler

from d2llm.data.example import Example, text_id
from d2llm.errors import InputError


def plan(
    num_examples: int,
    batch_size: int,
    seed: int = 0,
    epoch: int = 0,
    world_size: int = 1,
    tasks: Sequence[str] | None = None,
) -> np.ndarray:
    """Example indices of every batch of an epoch: (steps, world_size, batch_size) int64.

    Every example appears at most once; those that do not fill a last step wait for another epoch's shuffle.

    Args:
        num_examples: examples in all.
        batch_size: examples a process takes at a step.
        seed: seed of the run.
        epoch: number of the epoch, from 0.
        world_size: processes.
        tasks: the task of every example, to fill each step from one task; None mixes tasks.

    Raises:
        InputError: if the examples do not fill one step, or ``tasks`` has another length.
    """
    step_size = batch_size * world_size
    if batch_size < 1 or world_size < 1:
        raise InputError(f"batch_size, world_size: expected at least 1 each, got {batch_size} and {world_size}")
    if tasks is not None and len(tasks) != num_examples:
        raise InputError(f"tasks: expected {num_examples}, one an example, got {len(tasks)}")
    draw = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64))
    order = np.argsort(draw.random_raw(num_examples), kind="stable").astype(np.int64)
    labels = np.unique(np.zeros(num_examples) if tasks is None else tasks, return_inverse=True)[1][order]
    groups = [order[labels == label] for label in range(labels.max(initial=0) + 1)]
    steps = np.concatenate([group[: len(group) // step_size * step_size].reshape(-1, step_size) for group in groups])
    if not len(steps):
        raise InputError(
            f"batch_size: expected at most the {num_examples} examples (of one task, where a batch has one task) "
            f"over {world_size} processes, got {batch_size}"
        )
    if tasks is not None:
        steps = steps[np.argsort(draw.random_raw(len(steps)), kind="stable")]
    return steps.reshape(-1, world_size, batch_size)


def in_batch_pairs(examples: Sequence[Example], plans: Iterable[np.ndarray]) -> Iterator[tuple[int, int]]:
    """Pairs (i, j) that meet in a batch: query of example i, positive of example j, i != j.

    Each pair of texts comes once, however often it meets; pairs that are positives of each other are left out,
    since the losses mask them.

    Args:
        examples: the training examples.
        plans: one array of :func:`plan` for each epoch.
    """
    queries = [text_id(example.query) for example in examples]
    positives = [text_id(example.positive) for example in examples]
    seen = set(zip(queries, positives, strict=True))
    for epoch in plans:
        for batch in epoch.reshape(-1, epoch.shape[-1]).tolist():
            for i in batch:
                for j in batch:
                    pair = (queries[i], positives[j])
                    if pair not in seen:
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
    scores = example.scores and (example.scores[0], *(example.scores[1 + i] for i in kept))
    return replace(example, negatives=tuple(example.negatives[i] for i in kept), scores=scores)


class EpochExamples(Dataset[Example]):
    """Examples by (epoch, index), each with the hard negatives of that epoch."""

    def __init__(self, examples: Sequence[Example], negatives: int, seed: int) -> None:
        """Args: the examples, hard negatives K of each at most, and the seed of the run."""
        self.examples = examples
        self.negatives = negatives
        self.seed = seed

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, key: tuple[int, int]) -> Example:
        epoch, index = key
        return choose_negatives(self.examples[index], self.negatives, self.seed, epoch)


class PlannedBatches(Sampler[list[tuple[int, int]]]):
    """Batch sampler that yields one process's (epoch, index) keys in the order of :func:`plan`."""

    def __init__(self, make_plan: Callable[[int], np.ndarray], rank: int, current_epoch: Callable[[], int]) -> None:
        """Make the sampler.

        Args:
            make_plan: plan of an epoch.
            rank: which process's batches to yield.
            current_epoch: asked whenever iteration starts, so that a resumed run needs no other signal.
        """
        self.make_plan = make_plan
        self.rank = rank
        self.current_epoch = current_epoch
        self.steps = len(make_plan(0))

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.current_epoch()
        for batch in self.make_plan(epoch)[:, self.rank].tolist():
            yield [(epoch, index) for index in batch]
