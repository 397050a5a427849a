"""What every system of a line-up finds in a collection, and what that costs."""

from collections.abc import Mapping, Sequence

from d2llm.data.beir import Collection
from d2llm.errors import InputError
from d2llm.evaluation.lineup import BM25_ROW, Lineup, System, own_name
from d2llm.evaluation.models import encoder_of, judge_of
from d2llm.evaluation.rerank import CANDIDATES, rerank
from d2llm.evaluation.run import DEPTH
from d2llm.evaluation.scorers import (
    Found,
    Scorer,
    StudentEncoder,
    Vectors,
    bm25_scorer,
    cosine_scorer,
    hybrid_scorer,
    iem_scorer,
    search,
)
from d2llm.student import D2LLM
from d2llm.tasks import ASYM


def find_all(
    lineup: Lineup,
    collection: Collection,
    task: str = ASYM,
    depth: int = DEPTH,
    candidates: int = CANDIDATES,
    runs: Mapping[str, Found] | None = None,
    show_progress: bool = True,
) -> dict[str, Found]:
    """Run every system of the line-up over the collection.

    Args:
        lineup: the systems.
        collection: queries and corpus; the judgements are not looked at.
        task: branch of the interaction module and template of the teacher.
        depth: passages kept of each query.
        candidates: passages of each query that a second stage judges.
        runs: what others found, by name: rows of their own, and first stages.
        show_progress: show the teacher's progress.

    Returns:
        {name of the row: what the system found}, in the order of the line-up, the runs of others last.

    Raises:
        InputError: for candidates beyond the depth, two rows of one name, and as the systems do.
    """
    if any(system.reranks for system in lineup.systems) and not 1 <= candidates <= depth:
        raise InputError(f"candidates: expected 1 to the depth ({depth}), got {candidates}")
    first = [system for system in lineup.systems if not system.reranks]
    found = _first_stages(lineup, first, collection, task, depth)
    others, result = dict(runs or {}), dict[str, Found]()

    def add(name: str, rows: Found) -> None:
        if name in result or name in others:
            raise InputError(
                f"--systems: expected rows of distinct names, got {name!r} again; put NAME= in front of one"
            )
        result[name] = rows

    for system in lineup.systems:
        if not system.reranks:
            for name, rows in found[system].items():
                add(name, rows)
            continue
        judge_name, judge = judge_of(lineup, system, task, show_progress)
        for stage in lineup.first_stages:
            for name, before in _of_stage(found, others, stage).items():
                few = min(candidates, len(collection.corpus))
                row = f"{judge_name} on {name}'s best {few}"
                add(row, rerank(judge, before, collection.queries, collection.corpus, candidates))
    return result | others


def _first_stages(
    lineup: Lineup, systems: Sequence[System], collection: Collection, task: str, depth: int
) -> dict[System, dict[str, Found]]:
    """Rows by system; a student at a time, so that the vectors of one are held and no more."""
    ids, passage_ids = list(collection.queries), list(collection.corpus)
    queries, passages = list(collection.queries.values()), list(collection.corpus.values())
    found: dict[System, dict[str, Found]] = {system: {} for system in systems}
    kinds = {system.kind for system in systems}
    lexical = bm25_scorer(BM25_ROW, queries, passages) if kinds & {"bm25", "hybrid"} else None

    def add(scorers: dict[System, Scorer]) -> None:
        rows = search(list(scorers.values()), ids, passage_ids, depth)
        for system, scorer in scorers.items():
            before = found[system].get(scorer.name)
            found[system][scorer.name] = _with_seed(before, rows[scorer.name])

    for system in systems:
        if system.kind == "bm25" and lexical is not None:
            add({system: lexical})
        elif system.kind in ("untrained", "mean", "st"):
            name, encoder = encoder_of(lineup, system)
            add({system: cosine_scorer(name, Vectors.of(encoder, queries, passages))})
    own = [system for system in systems if system.kind in ("cosine", "iem", "hybrid")]
    for label, student in lineup.students if own else ():
        vectors = Vectors.of(StudentEncoder(student), queries, passages)
        add(_of_student(lineup, own, label, student, vectors, lexical, task))
    return found


def _of_student(
    lineup: Lineup,
    systems: Sequence[System],
    label: str,
    student: D2LLM,
    vectors: Vectors,
    lexical: Scorer | None,
    task: str,
) -> dict[System, Scorer]:
    weight = student.config.bm25_weight if lineup.bm25_weight is None else lineup.bm25_weight
    names = {kind: own_name(kind, label, weight) for kind in ("cosine", "iem", "hybrid")}
    iem = iem_scorer(names["iem"], student.iem, vectors, task)
    scorers: dict[System, Scorer] = {}
    for system in systems:
        if system.kind == "cosine":
            scorers[system] = cosine_scorer(names["cosine"], vectors)
        elif system.kind == "iem":
            scorers[system] = iem
        elif lexical is not None:
            scorers[system] = hybrid_scorer(names["hybrid"], iem, lexical, weight)
    return scorers


def _with_seed(before: Found | None, new: Found) -> Found:
    """What students of one name found, as one; its cost is the first one's."""
    return new if before is None else Found(before.runs + new.runs, before.cost)


def _of_stage(found: dict[System, dict[str, Found]], others: dict[str, Found], stage: str) -> dict[str, Found]:
    rows = {stage: others[stage]} if stage in others else {}
    for system, those in found.items():
        if stage in (system.kind, system.name):
            rows |= those
    return rows
