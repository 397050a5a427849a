"""Labelled groups for tuning and judging a teacher: one positive, BM25-hard negatives, random negatives."""

import random
from collections.abc import Sequence
from dataclasses import replace

from d2llm.bm25 import BM25
from d2llm.data.example import Example, text_id, text_key
from d2llm.data.positives import KnownPositives
from d2llm.errors import InputError

#: How many BM25 results the hard negatives are drawn from.
HARD_POOL = 10


def make_groups(
    examples: Sequence[Example],
    corpus: Sequence[str],
    *,
    hard: int = 2,
    easy: int = 1,
    seed: int = 0,
    positives: Sequence[Example] = (),
) -> list[Example]:
    """Give every example ``hard`` negatives from BM25's first results and ``easy`` random ones, in that order.

    Known positives of the query, by ``examples`` or ``positives``, are never negatives.
    The draw depends on ``seed`` and the query alone, not on the order of the examples. Examples
    whose corpus offers too few negatives are dropped.

    Raises:
        InputError: for an empty corpus or a negative count.
    """
    if hard < 0 or easy < 0 or hard + easy == 0:
        raise InputError(f"hard, easy: expected counts with a sum of at least 1, got {hard} and {easy}")
    known = KnownPositives((*examples, *positives))
    keys = list(map(text_key, corpus))
    bm25 = BM25(corpus)
    depth = min(2 * HARD_POOL, len(corpus))
    _, found = bm25.search([example.query for example in examples], depth)
    groups = []
    for example, row in zip(examples, found, strict=True):
        draw = random.Random(f"{seed}:{text_id(example.query)}:{text_id(example.positive)}")
        excluded = set(known.of(example.query))
        pool = list({keys[i]: i for i in reversed(row) if keys[i] not in excluded}.values())[::-1][:HARD_POOL]
        if len(pool) < hard:
            continue
        chosen = draw.sample(pool, hard)
        excluded.update(keys[i] for i in chosen)
        drawn = draw.sample(range(len(corpus)), min(len(corpus), easy + len(excluded)))
        others = [i for i in drawn if keys[i] not in excluded]
        if len(others) >= easy:
            negatives = tuple(corpus[i] for i in (*chosen, *others[:easy]))
            groups.append(replace(example, negatives=negatives, scores=None))
    return groups
