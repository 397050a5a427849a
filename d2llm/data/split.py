"""Held-out examples split off a training set: disjoint by text, the same for the same seed."""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from d2llm.data.columns import Columns, changed, columns_of
from d2llm.data.example import Example, text_key
from d2llm.errors import InputError
from d2llm.tasks import TASKS

#: Examples of a task held out at most: enough for an MRR to 0.02, few enough to evaluate often.
MOST_HELD_OUT = 500


@dataclass(frozen=True)
class Split:
    """Two parts of a set of examples, each in its order. No query or positive of one is in the other."""

    train: Sequence[Example]
    held_out: list[Example]


def split(examples: Sequence[Example], share: float, seed: int) -> Split:
    """Hold out ``share`` of the examples of each task, ``MOST_HELD_OUT`` of it at most.

    Examples that share a query or a positive, up to white space, stay together, so that none is lost to keep the parts
    disjoint. What is held out leaves the hard negatives of the other part too. Hard negatives of held-out examples are
    candidates to search, which training may have seen. A task that is small, or that hangs together, may have none
    held out where another one has some.

    Args:
        examples: the whole set; its order does not decide what is held out.
        share: above 0 and below 1.
        seed: of the choice.

    Raises:
        InputError: where too few examples, or too many that hang together by shared texts, leave nothing to hold out.
    """
    columns = columns_of(examples)
    count, groups = _connected(columns)
    chosen = _choose(columns, count, groups, share, seed)
    if not chosen.any():
        raise InputError(
            f"data.validation_share: expected examples apart from the others to hold {share:g} of {len(examples)} out, "
            f"found none in {count} groups that share no text; name data.validation, or set it to 0 to train "
            "without validation"
        )
    held = np.flatnonzero(chosen)
    unseen = {*columns.queries[held].tolist(), *columns.positives[held].tolist()}
    train = changed(examples, partial(_without, unseen=unseen), np.flatnonzero(~chosen))
    return Split(train, [examples[int(row)] for row in held])


def _connected(columns: Columns) -> tuple[int, NDArray[np.int32]]:
    """The number of groups of examples that share neither query nor positive with another one, and each one's (N,)."""
    # Training is imported where nothing is split.
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    size = len(columns.queries)
    texts = np.concatenate([columns.queries, columns.positives])
    order = np.argsort(texts)
    texts = texts[order]
    # Two examples that follow each other in the order of a text share it.
    ties = np.flatnonzero(texts[1:] == texts[:-1])
    links = order[ties] % size, order[ties + 1] % size
    shared = csr_array((np.ones(len(ties), bool), links), shape=(size, size))
    count, groups = connected_components(shared, directed=False)
    return count, groups


def _choose(columns: Columns, count: int, groups: NDArray[np.int32], share: float, seed: int) -> NDArray[np.bool_]:
    """Which examples are held out, (N,): whole groups in the order of a draw, as long as there is room."""
    kinds = len(TASKS)
    room = np.minimum(MOST_HELD_OUT, np.round(share * np.bincount(columns.tasks, minlength=kinds))).astype(np.int64)
    asked = np.bincount(kinds * groups.astype(np.int64) + columns.tasks, minlength=kinds * count).reshape(count, kinds)
    # A group is named after its smallest key, whatever the order of its examples.
    names = np.full(count, np.iinfo(np.uint64).max)
    np.minimum.at(names, groups, columns.queries)
    draws = np.fromiter((_draw(seed, int(name)) for name in names), np.uint64, count)
    chosen = np.zeros(count, bool)
    for group in np.argsort(draws, kind="stable"):
        if (asked[group] <= room).all():
            chosen[group] = True
            room -= asked[group]
            if not room.any():
                break
    return chosen[groups]


def _draw(seed: int, name: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{name:016x}".encode()).digest()[:8], "big")


def _without(example: Example, unseen: Collection[int]) -> Example:
    kept = [i for i, negative in enumerate(example.negatives) if text_key(negative) not in unseen]
    return example if len(kept) == len(example.negatives) else example.with_negatives(kept)
