"""How well ``d2llm teach label`` finds hidden labels again.

Queries are docstrings of the standard library that were held out from the shipped student and from the shipped
teacher, their labels hidden; the corpus is all of its functions. The teacher is calibrated on further such queries with
their labels.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.quality.asked import Asked
from benchmarks.quality.sets import over_library
from d2llm.cli.options import load_teacher
from d2llm.data.docstrings import hold_out, standard_library_pairs
from d2llm.data.example import Example
from d2llm.data.validation import Validation
from d2llm.demo.library import library_vectors
from d2llm.evaluation.scorers import Vectors
from d2llm.shipped import STUDENT, TEACHER
from d2llm.student import D2LLM
from d2llm.teacher.calibration import Calibrated, Calibration, Labelled
from d2llm.teacher.joint import StudentJudge, joint
from d2llm.teacher.labelling import Cuts, find_candidates, known, label, pairs_of
from d2llm.teacher.scores import ScoreTable
from d2llm.teacher.scoring import collect, plan_pairs, score

PART = "labels"
#: Queries whose labels are hidden, and those that the teacher is calibrated on.
QUERIES, LABELLED = 100, 60
#: Of a query, as the command has it by default.
CANDIDATES = 10
#: Least probabilities of a positive.
CUTS = (0.3, Cuts.positive, 0.7)
_DRAWS = 10_000

Labels = Iterable[tuple[str, str]]


@dataclass(frozen=True)
class Recovered:
    """Of every query, (N,) int64: passages that were called positives, those of them that are, and those that are."""

    called: np.ndarray
    right: np.ndarray
    relevant: np.ndarray

    @classmethod
    def of(cls, labels: Labels, truth: Validation) -> "Recovered":
        """Compare pairs of query and passage with the true ones."""
        rows = {query: row for row, query in enumerate(truth.queries)}
        called, right = (np.zeros(len(rows), np.int64) for _ in range(2))
        for query, passage in labels:
            called[rows[query]] += 1
            right[rows[query]] += passage in {truth.passages[i] for i in truth.relevant[rows[query]]}
        return cls(called, right, np.array([len(rows) for rows in truth.relevant]))

    @property
    def row(self) -> str:
        """Cells: queries with a positive, positives, precision and recall, their intervals by bootstrap of queries."""
        cells = [f"{(self.called > 0).sum()} of {len(self.called)}", f"{self.called.sum()}"]
        for below in (self.called, self.relevant):
            if not below.any():
                cells.append("")
                continue
            draw = np.random.default_rng(0).integers(len(below), size=(_DRAWS, len(below)))
            right, of = self.right[draw].sum(axis=1), below[draw].sum(axis=1)
            # A draw without a positive has no precision.
            low, high = np.percentile(right[of > 0] / of[of > 0], [2.5, 97.5])
            cells.append(f"{self.right.sum() / below.sum():.3f} ({low:.3f} to {high:.3f})")
        return " | ".join(cells)


@dataclass(frozen=True)
class Judged:
    """What the command does up to its cuts: candidates of every query, found and judged."""

    truth: Validation
    #: (Nq, Np) float32 of the shipped student.
    scores: np.ndarray
    candidates: list[list[str]]
    table: ScoreTable
    #: Who decides: the teacher alone, or with the student, as the command has it.
    judges: dict[str, tuple[ScoreTable, Calibration]]

    @classmethod
    def of(cls, truth: Validation, few: Sequence[Example], work: Path) -> "Judged":
        """Search and judge for the queries of ``truth``, whose labels are not read, and for those of ``few``."""
        student, passages = D2LLM.from_pretrained(STUDENT), list(truth.passages)
        every = [*truth.queries, *(example.query for example in few)]
        # As the command would embed them, had they not been shipped.
        embedded = torch.from_numpy(library_vectors(student, passages))
        vectors = Vectors(student.encode(every, "query", convert_to="torch"), embedded)
        second = StudentJudge(student.iem, vectors, every, passages, truth.task)
        found = find_candidates(every, passages, CANDIDATES, [second.scorer])
        pairs = pairs_of(every, found)
        begun = time.process_time()
        scored = collect(score(load_teacher(None, TEACHER, None), list(plan_pairs(pairs, truth.task)), work))
        print(f"{len(pairs)} pairs judged in {time.process_time() - begun:.0f} CPU seconds")
        asked = len(truth.queries)
        told = known(few, found[asked:])
        judges = {}
        for name, judge in (
            ("teacher alone", scored),
            ("teacher and student", joint(scored, second.leads(found), told)),
        ):
            calibrated = Calibrated.of(Labelled.of(told, judge))
            print(f"\n{name}\n{calibrated}")
            judges[name] = judge, calibrated.calibration
        return cls(truth, second.scorer.rows(slice(0, asked), {}), found[:asked], scored, judges)

    def positives(self, who: str, cut: float) -> Labels:
        """What is labelled so."""
        cuts = Cuts(cut, min(Cuts.negative, cut / 2))
        queries, task = self.truth.queries, self.truth.task
        examples, report = label(queries, self.candidates, self.table, *self.judges[who], cuts, 0, task)
        print(f"\n{who}, cut {cut}\n{report}")
        return [(example.query, example.positive) for example in examples]

    def nearest(self) -> Labels:
        """Each query with the passage that the student puts first: labels without a teacher."""
        first = self.scores.argmax(axis=1)
        return [(query, self.truth.passages[i]) for query, i in zip(self.truth.queries, first, strict=True)]


def table(judged: Judged) -> list[str]:
    """Markdown lines."""
    rows = {
        **{f"{who}, `--positive {cut}`": judged.positives(who, cut) for who in judged.judges for cut in CUTS},
        "the student's best": judged.nearest(),
        "every candidate": pairs_of(judged.truth.queries, judged.candidates),
    }
    head = "| positives | queries with one | in all | precision, 95 % | recall, 95 % |"
    rule = "| --- | ---: | ---: | ---: | ---: |"
    return [head, rule, *(f"| {name} | {Recovered.of(labels, judged.truth).row} |" for name, labels in rows.items())]


def _of(queries: Iterable[str], pairs: Iterable[Example]) -> list[Example]:
    """Every pair of these queries: functions may share a docstring."""
    asked = set(queries)
    return [pair for pair in pairs if pair.query in asked]


def blocks(asked: Asked) -> dict[str, list[str]]:
    """Judge what is not judged yet, label, and compare the labels with the hidden ones."""
    pairs = standard_library_pairs()
    held_out = list(dict.fromkeys(pair.query for pair in hold_out(pairs)[1]))
    hidden, told = held_out[:QUERIES], held_out[QUERIES:][:LABELLED]
    return {PART: table(Judged.of(over_library(_of(hidden, pairs)), _of(told, pairs), asked.work / PART))}
