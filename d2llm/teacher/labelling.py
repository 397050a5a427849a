"""Training examples for queries that nobody has labelled: candidates of a search, judged by a teacher.

The setting of RRADistill (Choi et al. 2024): queries without clicks. What the teacher's calibrated probability puts
high is a positive, what it puts low a hard negative, and what lies between is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from d2llm.data.example import Example, text_id, text_key
from d2llm.errors import InputError
from d2llm.evaluation.run import NOTHING
from d2llm.evaluation.scorers import Scorer, bm25_scorer, search
from d2llm.teacher.calibration import BINS, Calibration
from d2llm.teacher.model import NO, YES
from d2llm.teacher.scores import ScoreTable


@dataclass(frozen=True)
class Cuts:
    """Calibrated probabilities that make labels.

    Raises:
        InputError: unless 0 <= negative < positive <= 1.
    """

    #: From here on a candidate is a positive.
    positive: float = 0.5
    #: Up to here it is a hard negative.
    negative: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.negative < self.positive <= 1:
            raise InputError(
                f"negative, positive: expected 0 <= negative < positive <= 1, got {self.negative} and {self.positive}"
            )


@dataclass(frozen=True)
class LabelReport:
    """What a teacher found."""

    queries: int
    #: Queries with at least one positive; the others make no example.
    answered: int
    pairs: int
    positives: int
    negatives: int
    #: Mean calibrated probability of the positives: the precision to expect of them; NaN without any.
    expected_precision: float
    #: Judged pairs by tenths of their probability.
    tenths: list[int]

    def __str__(self) -> str:
        between = self.pairs - self.positives - self.negatives
        most = max(self.tenths) or 1
        bars = (
            f"{row / BINS:.1f} to {(row + 1) / BINS:.1f}  {count:>7,}  {'#' * round(40 * count / most)}"
            for row, count in enumerate(self.tenths)
        )
        return "\n".join(
            (
                f"queries:   {self.answered:,} of {self.queries:,} found a positive",
                f"pairs:     {self.pairs:,} judged: {self.positives:,} positives, {self.negatives:,} negatives, "
                f"{between:,} between",
                f"precision: {self.expected_precision:.3f} of the positives, if the labelled queries are like these",
                "probability    pairs",
                *bars,
            )
        )


def find_candidates(
    queries: Sequence[str], passages: Sequence[str], count: int, further: Sequence[Scorer] = ()
) -> list[list[str]]:
    """The ``count`` passages of each query that BM25 and further systems put first, one of each in turn.

    A passage that is the query itself, up to white space, is left out. BM25 finds only what shares a term with the
    query.

    Args:
        queries: Nq texts.
        passages: Np distinct texts.
        count: at most so many of each query.
        further: systems over the same queries and passages, such as a student's.

    Returns:
        Nq lists of distinct texts.

    Raises:
        InputError: for no passages, or a count below 1.
    """
    if count < 1:
        raise InputError(f"candidates: expected at least 1, got {count}")
    scorers = [bm25_scorer("bm25", queries, passages), *further]
    # Numbers serve as ids; one more than asked for, should the query itself be among them.
    asked, held = ([str(number) for number in range(len(each))] for each in (queries, passages))
    ranked = [each.runs[0].indices for each in search(scorers, asked, held, min(count + 1, len(passages))).values()]
    return [
        _in_turn(query, [[passages[i] for i in run[row] if i != NOTHING] for run in ranked], count)
        for row, query in enumerate(queries)
    ]


def _in_turn(query: str, ranked: Sequence[Sequence[str]], count: int) -> list[str]:
    """The first ``count`` texts of several lists, one of each in turn."""
    own = text_key(query)
    texts = (text for rank in zip_longest(*ranked) for text in rank if text is not None and text_key(text) != own)
    return list(dict.fromkeys(texts))[:count]


def pairs_of(queries: Sequence[str], candidates: Sequence[Sequence[str]]) -> list[tuple[str, str]]:
    """What a teacher has to judge, each pair once."""
    return list(dict.fromkeys((q, p) for q, found in zip(queries, candidates, strict=True) for p in found))


def known(examples: Sequence[Example], candidates: Sequence[Sequence[str]]) -> list[Example]:
    """Labelled queries with their candidates: what is no positive of the query is a negative.

    Args:
        examples: queries with positives.
        candidates: of each example's query.
    """
    positives: dict[str, set[int]] = {}
    for example in examples:
        positives.setdefault(example.query, set()).add(text_key(example.positive))
    return [
        Example(
            example.query,
            example.positive,
            tuple(text for text in found if text_key(text) not in positives[example.query]),
            example.task,
        )
        for example, found in zip(examples, candidates, strict=True)
    ]


def label(
    queries: Sequence[str],
    candidates: Sequence[Sequence[str]],
    table: ScoreTable,
    judge: ScoreTable,
    calibration: Calibration,
    cuts: Cuts,
    negatives: int,
    task: str,
) -> tuple[list[Example], LabelReport]:
    """Examples of what a teacher has judged, an example for every positive, and a report.

    Args:
        queries: Nq distinct texts.
        candidates: Nq lists of texts, whose pairs the table holds.
        table: the teacher's scores; examples carry them.
        judge: the scores that decide: the same, or those of teacher and student (:func:`d2llm.teacher.joint.joint`).
        calibration: what makes probabilities of these.
        cuts: what makes labels of the probabilities.
        negatives: hard negatives of an example at most, the most probable first.
        task: "sym" or "asym".

    Raises:
        InputError: for a pair that a table does not hold.
    """
    examples: list[Example] = []
    every: list[NDArray[np.float64]] = []
    high: list[NDArray[np.float64]] = []
    answered = low = 0
    for query, texts in zip(tqdm(queries, desc="labels", disable=len(queries) < 20_000), candidates, strict=True):
        logits, decisive = (_judged(each, query, texts) for each in (table, judge))
        found = calibration.probability(decisive[:, YES] - decisive[:, NO])
        order = np.argsort(-found, kind="stable")
        positive = [i for i in order if found[i] >= cuts.positive]
        negative = [i for i in order if found[i] <= cuts.negative]
        every.append(found)
        high.append(found[positive])
        answered += bool(positive)
        low += len(negative)
        for i in positive:
            rows = [i, *negative[:negatives]]
            scores: Any = tuple(map(tuple, logits[rows].tolist()))
            examples.append(Example(query, texts[i], tuple(texts[j] for j in rows[1:]), task, scores))
    pairs, sure = np.concatenate(every), np.concatenate(high)
    tenths = np.bincount(np.minimum((pairs * BINS).astype(int), BINS - 1), minlength=BINS).tolist()
    precision = float(sure.mean()) if len(sure) else float("nan")
    return examples, LabelReport(len(queries), answered, len(pairs), len(sure), low, precision, tenths)


def _judged(table: ScoreTable, query: str, texts: Sequence[str]) -> NDArray[np.float64]:
    """Raw logits (n, 2) of a query's candidates."""
    found = [table.logits(text_id(query), text_id(text)) for text in texts]
    if None in found:
        raise InputError(f"candidates: expected pairs that the teacher has judged, it has not: {query!r:.200}")
    return np.array(found, np.float64).reshape(-1, 2)
