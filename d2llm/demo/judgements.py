"""The teacher's scores that a demonstration needs: shipped ones where they fit, made live where not."""

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from d2llm.bm25 import top_indices
from d2llm.data.example import Example, text_id
from d2llm.data.validation import Validation
from d2llm.errors import MismatchError
from d2llm.evaluation.retrieval import reranked_scores
from d2llm.teacher.model import NO, YES, Teacher, yes_probability
from d2llm.teacher.scores import ScoreTable
from d2llm.teacher.scoring import collect, plan_groups, plan_pairs, score

#: Pairs that are scored live at most where the shipped table does not hold them: a minute or two on two cores.
LIVE_PAIRS = 1500
#: Largest mean difference of a yes-probability between the shipped scores and the same teacher here.
TOLERANCE = 0.05

Pair = tuple[str, str]


def rerank_pairs(data: Validation, first_stage: np.ndarray, count: int) -> tuple[np.ndarray, list[Pair]]:
    """The best ``count`` passages of every query by a first stage: (Nq, count) indices, and the pairs to judge."""
    chosen = np.stack([top_indices(row, min(count, len(data.passages))) for row in first_stage])
    pairs = [(query, data.passages[i]) for query, row in zip(data.queries, chosen, strict=True) for i in row]
    return chosen, pairs


def reranked(data: Validation, first_stage: np.ndarray, count: int, table: ScoreTable) -> tuple[np.ndarray, np.ndarray]:
    """First-stage scores re-ordered by the teacher, and which queries it has judged in full: (Nq, Np), (Nq,) bool."""
    chosen, pairs = rerank_pairs(data, first_stage, count)
    found = [table.logits(text_id(query), text_id(passage)) for query, passage in pairs]
    margins = np.array([logits[YES] - logits[NO] if logits else np.nan for logits in found]).reshape(chosen.shape)
    judged = ~np.isnan(margins).any(axis=1)
    # A query that was not judged in full keeps its first-stage order.
    margins[~judged] = -np.arange(chosen.shape[1])
    return reranked_scores(first_stage, chosen, margins), judged


def check_sample(
    teacher: Teacher, table: ScoreTable, pairs: Sequence[Pair], task: str, count: int = 48, seed: int = 0
) -> float | None:
    """Judge some of the shipped pairs live: the mean difference of the yes-probability, None where none is shipped.

    Raises:
        MismatchError: if it is above ``TOLERANCE``, or if the table names another teacher.
    """
    table.check_same_teacher(teacher.header())
    known = [pair for pair in pairs if (text_id(pair[0]), text_id(pair[1])) in table]
    if not known:
        return None
    sample = random.Random(seed).sample(known, min(count, len(known)))
    queries, passages = zip(*sample, strict=True)
    live, _ = teacher.judge(queries, passages, task)
    kept = np.array([table.logits(text_id(query), text_id(passage)) for query, passage in sample], np.float32)
    difference = float(np.abs(yes_probability(live) - yes_probability(kept)).mean())
    if difference > TOLERANCE:
        raise MismatchError(
            f"shipped teacher scores: expected to differ from live ones by {TOLERANCE} at most, got {difference:.3f}"
        )
    return difference


def complete(
    teacher: Teacher, table: ScoreTable | None, examples: Sequence[Example], pairs: Sequence[Pair], folder: Path
) -> tuple[ScoreTable, int]:
    """The table with what it lacks scored live, ``LIVE_PAIRS`` at most, and how many pairs stay unjudged.

    Examples come first, each whole, then the pairs to re-rank. The shards stay in ``folder``.
    """

    def lacks(query: str, passage: str) -> bool:
        return table is None or (text_id(query), text_id(passage)) not in table

    groups = [example for example in examples if any(lacks(example.query, p) for p in example.passages)]
    loose = [pair for pair in pairs if lacks(*pair)]
    half = LIVE_PAIRS // 2
    chosen, size = [], 0
    for example in groups:
        if size + len(example.passages) > half:
            break
        chosen.append(example)
        size += len(example.passages)
    asked = loose[: LIVE_PAIRS - size]
    left = sum(len(example.passages) for example in groups) - size + len(loose) - len(asked)
    if not chosen and not asked:
        return table or ScoreTable(teacher.header()), left
    task = examples[0].task
    work = [*(plan_groups(chosen, 128) if chosen else ()), *plan_pairs(asked, task, 128)]
    live = collect(score(teacher, work, folder))
    if table is None:
        return live, left
    return ScoreTable(
        table.header,
        {**dict(table.items()), **dict(live.items())},
        {**dict(table.relations()), **dict(live.relations())},
    ), left
