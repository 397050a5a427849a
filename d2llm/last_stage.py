"""A teacher as the last stage of a search: it orders what was found anew, by both their judgements."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from d2llm.errors import InputError
from d2llm.fusion import fuse
from d2llm.index.hits import Hit
from d2llm.tasks import ASYM
from d2llm.teacher.model import NO, YES
from d2llm.teacher.scoring import Judge

#: Passages of a query that are judged: a pair costs an LLM's forward pass.
JUDGED = 10


def reorder(
    judge: Judge, queries: Sequence[str], hits: Sequence[Sequence[Hit]], task: str = ASYM, count: int = JUDGED
) -> list[list[Hit]]:
    """The same passages, the first ``count`` of every query by the sum of two z-scores among them.

    The two are the score of the search and the teacher's log-odds, z_yes - z_no; the teacher alone is often the worse
    judge. A passage keeps the score that the search gave it, so that scores need not fall along the list. Where the
    search explained itself, ``ranks`` say at which place ("search") it had it, and which one the teacher gives it, and
    ``scores`` the teacher's log-odds ("teacher").

    Args:
        queries: Nq texts.
        hits: what :meth:`d2llm.index.Index.search` found for each.
        task: "asym" or "sym", as it was searched by.
        count: how many are judged, 1 at least.

    Raises:
        InputError: for lists of different lengths, a count below 1, or passages without a text.
    """
    if len(queries) != len(hits):
        raise InputError(f"hits: expected {len(queries)} lists, one a query, got {len(hits)}")
    if count < 1:
        raise InputError(f"count: expected at least 1, got {count}")
    pairs = [(query, hit.text) for query, found in zip(queries, hits, strict=True) for hit in found[:count]]
    if any(not text for _, text in pairs):
        raise InputError("hits: expected passages with their texts, got one without; the index was built without texts")
    if not pairs:
        return [list(found) for found in hits]
    asked, passages = zip(*pairs, strict=True)
    logits, _ = judge.judge(asked, passages, task)
    odds = logits[:, YES] - logits[:, NO]
    ends = np.cumsum([len(found[:count]) for found in hits])[:-1]
    return [_ordered(found, own) for found, own in zip(hits, np.split(odds, ends), strict=True)]


def _ordered(found: Sequence[Hit], odds: np.ndarray) -> list[Hit]:
    """One query's hits, the first of which have these log-odds."""
    if not len(odds):
        return list(found)
    both = fuse(odds, [hit.score for hit in found[: len(odds)]], 1.0)
    by_teacher = np.argsort(np.argsort(-odds, kind="stable"), kind="stable") + 1
    order = np.argsort(-both, kind="stable").tolist()
    first = [_told(found[old], new + 1, int(by_teacher[old]), float(odds[old])) for new, old in enumerate(order)]
    return [*first, *found[len(odds) :]]


def _told(hit: Hit, rank: int, by_teacher: int, odds: float) -> Hit:
    if hit.ranks is None:
        return replace(hit, rank=rank)
    return replace(
        hit,
        rank=rank,
        ranks={**hit.ranks, "search": hit.rank, "teacher": by_teacher},
        scores={**(hit.scores or {}), "teacher": odds},
    )
