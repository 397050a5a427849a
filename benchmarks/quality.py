"""How well students search, on queries of several kinds, beside BM25: tables in docs/quality.md.

python -m benchmarks.quality --student new=runs/student old=shipped --cosqa DATA/cosqa --only docstrings everyday

What has been measured is kept in --work and not measured again, so that a run may be stopped and gone on with, or made
of several with --only. Validation sets, by which settings are chosen, are everything but ``test``, which is what the
demonstration holds out and is read for a final table alone. All are searched over every passage there is. With
--teacher the tables are of what a teacher makes of the best passages of the first student.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.document import put
from d2llm.data.cosqa import read_cosqa
from d2llm.data.docstrings import (
    below_names,
    by_name,
    hold_out,
    standard_library_functions,
    standard_library_names,
    standard_library_pairs,
)
from d2llm.data.example import Example, text_id
from d2llm.data.questions import read_questions
from d2llm.data.validation import Validation
from d2llm.demo.corpus import EVERYDAY, validation_pairs
from d2llm.demo.judgements import rerank_pairs
from d2llm.evaluation.retrieval import reranked_scores
from d2llm.evaluation.significance import Means, difference
from d2llm.evaluation.systems import bm25, iem_scores
from d2llm.files import atomic_path
from d2llm.fusion import fuse
from d2llm.last_stage import JUDGED
from d2llm.shipped import BASE_MODEL, STUDENT
from d2llm.student import D2LLM
from d2llm.student.encoding import cosine_similarity
from d2llm.teacher.model import NO, YES, Teacher
from d2llm.teacher.scoring import collect, plan_pairs, score

DOCUMENT = Path(__file__).parents[1] / "docs" / "quality.md"
#: What no setting is chosen by.
TESTS = ("test", "test-named")
_LEXICAL, _COSINE, _IEM, _HYBRID = "BM25", "cosine", "IEM", "hybrid"
#: Of the passages that are found, those that a teacher orders anew, and how.
BEST = JUDGED
_TEACHER, _BOTH = (f"{each} on the best {BEST}" for each in ("teacher", "teacher + hybrid"))


def over_library(held_out: Iterable[Example]) -> Validation:
    """Held-out pairs, to be searched for among every passage of the standard library."""
    passages = list(dict.fromkeys(pair.positive for pair in standard_library_pairs()))
    rows = {text: row for row, text in enumerate(passages)}
    relevant: dict[str, set[int]] = {}
    for pair in held_out:
        relevant.setdefault(pair.query, set()).add(rows[pair.positive])
    return Validation(tuple(relevant), tuple(passages), tuple(map(frozenset, relevant.values())))


def named(data: Validation) -> Validation:
    """The same search where functions stand below their names."""
    names = standard_library_names()
    below = dict(zip(names, below_names(names), strict=True))
    return replace(data, passages=tuple(below[passage] for passage in data.passages))


def documented(data: Validation) -> Validation:
    """The same search where functions come with names and docstrings, as in the library that ``d2llm search`` opens."""
    told = {function.code: function.documented for function in by_name(standard_library_functions()).values()}
    return replace(data, passages=tuple(told[passage] for passage in data.passages))


def cosqa(folder: Path) -> Validation:
    """CoSQA's development part: queries that people typed, over Python functions."""
    found = read_cosqa(folder)
    rows = {name: row for row, name in enumerate(found.corpus)}
    relevant = (frozenset(rows[name] for name in found.qrels[query]) for query in found.queries)
    return Validation(tuple(found.queries.values()), tuple(found.corpus.values()), tuple(relevant))


def sets(cosqa_folder: Path | None) -> dict[str, Callable[[], Validation]]:
    """What is searched, by name."""
    known: dict[str, Callable[[], Validation]] = {
        "docstrings": lambda: over_library(validation_pairs()),
        "everyday": lambda: read_questions(EVERYDAY, standard_library_functions()),
        "test": lambda: over_library(hold_out(standard_library_pairs())[1]),
    }
    known |= {f"{name}-named": lambda make=make: named(make()) for name, make in known.items()}
    # Of the other sets the queries are docstrings.
    known["everyday-documented"] = lambda: documented(known["everyday"]())
    if cosqa_folder is not None:
        known["cosqa"] = lambda: cosqa(cosqa_folder)
    return known


def _key(texts: Sequence[str]) -> str:
    return text_id("\0".join(texts))


class Measured:
    """Reciprocal ranks by set and system, kept in a folder, of students as ``load`` gives them."""

    def __init__(self, work: Path, load: Callable[[str], D2LLM] | None = None) -> None:
        self.work = work
        self.load = load or D2LLM.from_pretrained

    def file(self, data: str, system: str) -> Path:
        """Where the ranks of a system on a set lie."""
        return self.work / "ranks" / data / f"{system}.npy"

    def ranks(self, data: str, system: str) -> np.ndarray | None:
        """(Nq,) reciprocal ranks, None where they were not measured."""
        file = self.file(data, system)
        return np.load(file, allow_pickle=False) if file.is_file() else None

    def keep(self, data: str, system: str, ranks: np.ndarray) -> None:
        """Keep the ranks of a system on a set."""
        with atomic_path(self.file(data, system)) as target, open(target, "wb") as file:
            np.save(file, ranks, allow_pickle=False)

    def measure(self, name: str, data: Validation, students: dict[str, str]) -> None:
        """Whatever of a set is not measured yet."""
        needed = [each for each in students if self.ranks(name, f"{each}, {_HYBRID}") is None]
        if not needed and self.ranks(name, _LEXICAL) is not None:
            return
        lexical = bm25(data.queries, data.passages)
        self.keep(name, _LEXICAL, data.reciprocal_ranks(lexical))
        for each in needed:
            student = self.load(students[each])
            cosine, logits = self._student(student, data)
            hybrid = fuse(logits, lexical, student.config.bm25_weight)
            for system, scores in ((_COSINE, cosine), (_IEM, logits), (_HYBRID, hybrid)):
                self.keep(name, f"{each}, {system}", data.reciprocal_ranks(scores))

    def rerank(self, name: str, data: Validation, label: str, student: D2LLM, teacher: Teacher) -> None:
        """The same where a teacher orders what the hybrid finds best, by itself or with it: both as z-scores."""
        if self.ranks(name, f"{label}, {_BOTH}") is not None:
            return
        _, logits = self._student(student, data)
        found = fuse(logits, bm25(data.queries, data.passages), student.config.bm25_weight)
        ranks = reordered(teacher, data, found, self.work / "judged" / f"{name}-{student.fingerprint()}")
        for system, each in zip((_TEACHER, _BOTH), ranks, strict=True):
            self.keep(name, f"{label}, {system}", each)

    def _student(self, student: D2LLM, data: Validation) -> tuple[np.ndarray, np.ndarray]:
        """Cosine and logits; embeddings are kept too, since most of the time is theirs."""
        folder = self.work / "vectors" / student.fingerprint()
        texts = ((data.queries, "query"), (data.passages, "passage"))
        made = [np.array(student.encode(some, kind, out=folder / f"{_key(some)}.npy")) for some, kind in texts]
        return cosine_similarity(*made), iem_scores(student, *map(torch.from_numpy, made), data.task)


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


def table(measured: Measured, data: str, systems: Sequence[str]) -> list[str]:
    """Markdown lines: MRR of every system, and the difference of each to the first one, paired, by bootstrap."""
    lines = ["| system | MRR | over the first, 95 % |", "| --- | ---: | ---: |"]
    first = measured.ranks(data, systems[0])
    for system in systems:
        ranks = measured.ranks(data, system)
        if ranks is not None:
            over = "" if first is None or system == systems[0] else interval(ranks, first)
            lines.append(f"| {system} | {ranks.mean():.3f} | {over} |")
    return lines


def interval(ranks: np.ndarray, others: np.ndarray) -> str:
    """The 95 % interval of a difference of means, paired, as a cell of a table."""
    found = difference(Means(ranks, others))
    return f"{found.low:+.3f} to {found.high:+.3f}"


def main(arguments: list[str] | None = None) -> int:
    """Measure what is asked for and write every table that is there."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/quality"), help="folder of what has been measured")
    parser.add_argument(
        "--student", nargs="*", default=[f"shipped={STUDENT}"], help="NAME=FOLDER, the first of a table first"
    )
    parser.add_argument("--cosqa", type=Path, help="folder of CoSQA's codes.json and dev.json, which is not shipped")
    parser.add_argument("--only", nargs="*", help="sets to measure now; all but test by default")
    parser.add_argument(
        "--teacher",
        metavar="FOLDER",
        help="order the first student's best passages anew by this teacher, and tell of that alone",
    )
    parser.add_argument("--write", action="store_true", help="bring docs/quality.md up to it")
    asked = parser.parse_args(arguments)
    students = dict(each.split("=", 1) for each in asked.student)
    measured, known = Measured(asked.work), sets(asked.cosqa)
    chosen = [name for name in known if name not in TESTS] if asked.only is None else asked.only
    for name in chosen:
        measured.measure(name, known[name](), students)
    if asked.teacher is None:
        systems = [*(f"{each}, {how}" for each in students for how in (_COSINE, _IEM, _HYBRID)), _LEXICAL]
        blocks = {name: table(measured, name, systems) for name in known if measured.ranks(name, _LEXICAL) is not None}
    else:
        label, folder = next(iter(students.items()))
        teacher = Teacher.from_pretrained(BASE_MODEL, asked.teacher, dtype=torch.float32)
        for name in chosen:
            measured.rerank(name, known[name](), label, D2LLM.from_pretrained(folder), teacher)
        systems = [f"{label}, {how}" for how in (_HYBRID, _TEACHER, _BOTH)]
        blocks = {f"{name}-teacher": table(measured, name, systems) for name in chosen}
    for name, lines in blocks.items():
        print(f"\n{name}", *lines, sep="\n")
    if asked.write:
        put(DOCUMENT, blocks)
    return 0


if __name__ == "__main__":
    sys.exit(main())
