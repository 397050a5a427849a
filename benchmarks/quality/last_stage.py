"""What a teacher makes of the passages that a student finds best."""

from pathlib import Path

import numpy as np
import torch

from benchmarks.quality.asked import Asked
from benchmarks.quality.measured import HYBRID, Measured, table
from benchmarks.quality.sets import sets
from d2llm.data.example import text_id
from d2llm.data.validation import Validation
from d2llm.demo.judgements import rerank_pairs
from d2llm.evaluation.retrieval import reranked_scores
from d2llm.evaluation.systems import bm25
from d2llm.fusion import fuse
from d2llm.last_stage import JUDGED
from d2llm.shipped import BASE_MODEL, TEACHER
from d2llm.student import D2LLM
from d2llm.teacher.model import NO, YES, Teacher
from d2llm.teacher.scoring import collect, plan_pairs, score

PART = "last-stage"
SETS = ("docstrings", "everyday", "everyday-documented")
#: Of the passages that are found, those that a teacher orders anew.
BEST = JUDGED
_FOUND, _ALONE, BOTH = (
    f"shipped, {how}" for how in (HYBRID, f"teacher on the best {BEST}", f"teacher + hybrid on the best {BEST}")
)


def blocks(asked: Asked) -> dict[str, list[str]]:
    """Judge and measure what is not measured yet: a table a set."""
    measured, known = Measured(asked.work, PART), sets(None)
    found = {}
    for name in asked.only or SETS:
        if measured.ranks(name, BOTH) is None:
            _measure(measured, name, known[name](), asked.student)
        found[f"{name}-teacher"] = table(measured, name, [_FOUND, _ALONE, BOTH])
    return found


def _measure(measured: Measured, name: str, data: Validation, folder: Path) -> None:
    student = D2LLM.from_pretrained(folder)
    _, logits = measured.scores(student, data)
    found = fuse(logits, bm25(data.queries, data.passages), student.config.bm25_weight)
    measured.keep(name, _FOUND, data.reciprocal_ranks(found))
    teacher = Teacher.from_pretrained(BASE_MODEL, TEACHER, dtype=torch.float32)
    ranks = reordered(teacher, data, found, measured.folder / "judged" / f"{name}-{student.fingerprint()}")
    for system, each in zip((_ALONE, BOTH), ranks, strict=True):
        measured.keep(name, system, each)


def reordered(teacher: Teacher, data: Validation, scores: np.ndarray, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Reciprocal ranks (Nq,) where a teacher orders the passages that scores (Nq, Np) put first, and where both do.

    Both is the sum of their z-scores over those passages. The judgements stay in ``folder``.
    """
    chosen, pairs = rerank_pairs(data, scores, BEST)
    table = collect(score(teacher, list(plan_pairs(pairs, data.task, BEST * 16)), folder))
    judged = [table.logits(text_id(query), text_id(passage)) for query, passage in pairs]
    margins = np.array([each[YES] - each[NO] for each in judged if each]).reshape(chosen.shape)
    both = fuse(margins, np.take_along_axis(scores, chosen, 1), 1.0)
    alone, together = (data.reciprocal_ranks(reranked_scores(scores, chosen, each)) for each in (margins, both))
    return alone, together
