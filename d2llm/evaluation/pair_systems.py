"""The systems of an NLI or STS table, each as one score a pair (higher is better)."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from d2llm.bm25 import BM25
from d2llm.errors import InputError
from d2llm.evaluation.lineup import BM25_ROW, Lineup, System, own_name
from d2llm.evaluation.models import encoder_of, judge_of
from d2llm.evaluation.scorers import Encoder, StudentEncoder
from d2llm.student import D2LLM
from d2llm.tasks import SYM, task_index

Scores = NDArray[np.float32]
Pairs = Sequence[tuple[str, str]]

#: Queries that BM25 scores at once against all second texts.
_BLOCK = 256


@dataclass(frozen=True)
class ScoredPairs:
    """What one system says of N pairs."""

    #: (N,) each, one of every seed.
    seeds: tuple[Scores, ...]
    #: Milliseconds a pair, of the first seed.
    pair_ms: float


def bm25_pairs(pairs: Pairs) -> Scores:
    """BM25 of each first text with its second one, (N,) float32; the second texts are the collection.

    Raises:
        InputError: for no pairs.
    """
    passages = {text: row for row, text in enumerate(dict.fromkeys(second for _, second in pairs))}
    queries = {text: row for row, text in enumerate(dict.fromkeys(first for first, _ in pairs))}
    index, names = BM25(list(passages)), list(queries)
    wanted: dict[int, list[int]] = {}
    for number, (first, _) in enumerate(pairs):
        wanted.setdefault(queries[first], []).append(number)
    result = np.empty(len(pairs), np.float32)
    for start in range(0, len(names), _BLOCK):
        for offset, row in enumerate(index.scores(names[start : start + _BLOCK])):
            numbers = wanted[start + offset]
            result[numbers] = row[[passages[pairs[number][1]] for number in numbers]]
    return result


def cosine_pairs(encoder: Encoder, pairs: Pairs) -> Scores:
    """Cosine of an encoder's vectors, (N,) float32; each distinct text is run once, as first and as second."""
    first, second = (side.float() for side in _encoded(encoder, pairs))
    return torch.cosine_similarity(first, second, dim=1).cpu().numpy()


@torch.inference_mode()
def student_pairs(student: D2LLM, pairs: Pairs, task: str | int = SYM) -> tuple[Scores, Scores]:
    """Cosine and IEM logits of one encoding (paper section 3.2), both (N,) float32.

    Raises:
        InputError: for no pairs, an empty text or an unknown task.
    """
    branch = task_index(task)
    first, second = _encoded(StudentEncoder(student), pairs)
    cosine = torch.cosine_similarity(first.float(), second.float(), dim=1)
    return cosine.cpu().numpy(), student.iem(first, second, branch).float().cpu().numpy()


def score_pairs(lineup: Lineup, pairs: Pairs, task: str = SYM, show_progress: bool = True) -> dict[str, ScoredPairs]:
    """Have every system of the line-up score the same pairs.

    Args:
        lineup: the systems; a hybrid is none for pairs.
        pairs: N (first, second) non-empty texts.
        task: branch of the interaction module and template of the teacher.
        show_progress: show the teacher's progress.

    Returns:
        {name of the row: scores}; both rows of a student share the time of one encoding.

    Raises:
        InputError: for no pairs, a hybrid, and as the systems do.
    """
    if not pairs:
        raise InputError("pairs: expected at least one, got none")
    if any(system.kind == "hybrid" for system in lineup.systems):
        raise InputError(
            "--systems: hybrid fuses scores over the passages of a query, which pairs do not have; leave it out"
        )
    result: dict[str, ScoredPairs] = {}

    def add(name: str, scores: Scores, seconds: float) -> None:
        before = result.get(name, ScoredPairs((), 1000 * seconds / len(pairs)))
        result[name] = ScoredPairs((*before.seeds, scores), before.pair_ms)

    own: dict[str, list[tuple[dict[str, Scores], float]]] = {label: [] for label in lineup.labels()}
    for label, student in lineup.students if any(s.kind in ("cosine", "iem") for s in lineup.systems) else ():
        start = time.perf_counter()
        both = student_pairs(student, pairs, task)
        own[label].append((dict(zip(("cosine", "iem"), both, strict=True)), time.perf_counter() - start))
    for system in lineup.systems:
        if system.kind in ("cosine", "iem"):
            for label, seeds in own.items():
                for scores, seconds in seeds:
                    add(own_name(system.kind, label), scores[system.kind], seconds)
            continue
        name, score = _scorer(lineup, system, pairs, task, show_progress)
        start = time.perf_counter()
        add(name, score(), time.perf_counter() - start)
    return result


def _scorer(
    lineup: Lineup, system: System, pairs: Pairs, task: str, show_progress: bool
) -> tuple[str, Callable[[], Scores]]:
    if system.kind == "bm25":
        return BM25_ROW, lambda: bm25_pairs(pairs)
    if system.reranks:
        name, judge = judge_of(lineup, system, task, show_progress)
        return name, lambda: np.asarray(judge(*zip(*pairs, strict=True)), np.float32)
    name, encoder = encoder_of(lineup, system)
    return name, lambda: cosine_pairs(encoder, pairs)


def _encoded(encoder: Encoder, pairs: Pairs) -> list[torch.Tensor]:
    sides = []
    for side, kind in enumerate(("query", "passage")):
        rows = {text: row for row, text in enumerate(dict.fromkeys(pair[side] for pair in pairs))}
        sides.append(torch.as_tensor(encoder.encode(list(rows), kind))[[rows[pair[side]] for pair in pairs]])
    return sides
