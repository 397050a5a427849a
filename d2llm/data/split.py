"""Held-out examples split off a training set: disjoint by text, the same for the same seed."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from d2llm.data.example import Example, text_id
from d2llm.data.positives import text_key
from d2llm.errors import InputError

#: Examples of a task held out at most: enough for an MRR to 0.02, few enough to evaluate often.
MOST_HELD_OUT = 500


@dataclass(frozen=True)
class Split:
    """Two parts of a set of examples, each in its order. No query or positive of one is in the other."""

    train: list[Example]
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
    tasks = Counter(example.task for example in examples)
    room = Counter({task: min(MOST_HELD_OUT, round(share * count)) for task, count in tasks.items()})
    groups = _connected(examples)
    chosen: set[int] = set()
    for group in sorted(groups, key=lambda group: _draw(seed, examples, group)):
        asked = Counter(examples[i].task for i in group)
        if asked <= room:
            chosen.update(group)
            room -= asked
    if not chosen:
        raise InputError(
            f"data.validation_share: expected examples apart from the others to hold {share:g} of {len(examples)} out, "
            f"found none in {len(groups)} groups that share no text; name data.validation, or set it to 0 to train "
            "without validation"
        )
    held_out = [examples[i] for i in sorted(chosen)]
    unseen = {text_key(text) for example in held_out for text in (example.query, example.positive)}
    rest = [example for i, example in enumerate(examples) if i not in chosen]
    return Split([_without(example, unseen) for example in rest], held_out)


def _connected(examples: Sequence[Example]) -> list[list[int]]:
    """The indices of examples in groups that share neither query nor positive with another group."""
    parent = list(range(len(examples)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[str, int] = {}
    for i, example in enumerate(examples):
        for text in (example.query, example.positive):
            parent[root(i)] = root(first.setdefault(text_key(text), i))
    groups: dict[int, list[int]] = {}
    for i in range(len(examples)):
        groups.setdefault(root(i), []).append(i)
    return list(groups.values())


def _draw(seed: int, examples: Sequence[Example], group: list[int]) -> bytes:
    name = min(text_id(examples[i].query) for i in group)
    return hashlib.sha256(f"{seed}:{name}".encode()).digest()


def _without(example: Example, unseen: set[str]) -> Example:
    kept = [i for i, negative in enumerate(example.negatives) if text_key(negative) not in unseen]
    return example if len(kept) == len(example.negatives) else example.with_negatives(kept)
