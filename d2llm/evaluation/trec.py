"""Runs and relevance judgements as the files that trec_eval reads."""

import os
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from d2llm.data.rows import parse_rows, text_lines
from d2llm.errors import FormatError, InputError
from d2llm.evaluation.metrics import Qrels
from d2llm.evaluation.run import DEPTH, NOTHING, Run
from d2llm.files import atomic_path


def read_run(path: str | os.PathLike[str], depth: int = DEPTH) -> Run:
    """Read a run: ``query Q0 passage rank score name`` a line; the order is that of the scores, as in trec_eval.

    Args:
        path: the file.
        depth: passages kept of each query, those with the highest scores.

    Raises:
        MissingError: if there is no such file.
        FormatError: naming ``file:line: what`` for up to 20 faulty lines, a passage that stands twice included.
    """
    path = Path(path)
    passages: dict[str, int] = {}
    found: dict[str, tuple[array[int], array[float]]] = {}
    seen: set[tuple[str, int]] = set()

    def parse(line: str) -> tuple[()]:
        query, _, passage, _, score, _ = _cells(line, 6, "query, Q0, passage, rank, score and name")
        number = passages.setdefault(passage, len(passages))
        if (query, number) in seen:
            raise FormatError(f"passage: {passage!r} stands twice for query {query!r}")
        seen.add((query, number))
        indices, scores = found.setdefault(query, (array("i"), array("d")))
        scores.append(_finite(score))
        indices.append(number)
        return ()

    parse_rows(path, _filled(path), parse)
    few = min(depth, max((len(indices) for indices, _ in found.values()), default=0))
    run = Run(
        list(found),
        list(passages),
        np.full((len(found), few), NOTHING, np.int32),
        np.full((len(found), few), -np.inf, np.float64),
    )
    for row, (indices, scores) in enumerate(found.values()):
        order = np.argsort(-np.array(scores), kind="stable")[:few]
        run.indices[row, : len(order)] = np.array(indices)[order]
        run.scores[row, : len(order)] = np.array(scores)[order]
    return run


def write_run(path: str | os.PathLike[str], run: Run, name: str) -> None:
    """Write a run so that :func:`read_run` gives it back; the file appears whole or not at all.

    Raises:
        InputError: for an id with white space in it.
    """
    for kind, ids in (("query", run.queries), ("passage", run.passages)):
        _check_ids(kind, ids)
    label = "-".join(name.split()) or "run"
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as handle:
        for query, indices, scores in zip(run.queries, run.indices.tolist(), run.scores, strict=True):
            for rank, (index, score) in enumerate(zip(indices, scores, strict=True), start=1):
                if index != NOTHING:
                    # As many digits as bring the same number back.
                    text = np.format_float_positional(score, unique=True)
                    handle.write(f"{query} Q0 {run.passages[index]} {rank} {text} {label}\n")


def read_qrels(path: str | os.PathLike[str]) -> dict[str, dict[str, int]]:
    """Read judgements: ``query 0 passage grade`` a line.

    Raises:
        MissingError: if there is no such file.
        FormatError: naming ``file:line: what`` for up to 20 faulty lines, a pair that is judged twice included.
    """
    path = Path(path)
    qrels: dict[str, dict[str, int]] = {}

    def parse(line: str) -> tuple[()]:
        query, _, passage, grade = _cells(line, 4, "query, 0, passage and grade")
        row = qrels.setdefault(query, {})
        if passage in row:
            raise FormatError(f"passage: {passage!r} is judged twice for query {query!r}; leave one judgement")
        try:
            row[passage] = int(grade)
        except ValueError:
            raise FormatError(f"grade: expected an integer, got {grade[:200]!r}") from None
        return ()

    parse_rows(path, _filled(path), parse)
    return qrels


def write_qrels(path: str | os.PathLike[str], qrels: Qrels) -> None:
    """Write judgements so that :func:`read_qrels` gives them back; the file appears whole or not at all.

    Raises:
        InputError: for an id with white space in it.
    """
    _check_ids("query", list(qrels))
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as handle:
        for query, row in qrels.items():
            _check_ids("passage", list(row))
            handle.writelines(f"{query} 0 {passage} {grade}\n" for passage, grade in row.items())


def _filled(path: Path) -> Iterator[tuple[int, str | FormatError]]:
    return ((number, line) for number, line in text_lines(path) if not isinstance(line, str) or line.strip())


def _cells(line: str, count: int, what: str) -> list[str]:
    cells = line.split()
    if len(cells) != count:
        raise FormatError(f"expected {what}, got {len(cells)} columns: {line[:200]!r}")
    return cells


def _finite(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise FormatError(f"score: expected a finite number, got {text[:200]!r}")
    return value


def _check_ids(kind: str, ids: Sequence[str]) -> None:
    if wrong := [name for name in ids if len(name.split()) != 1 or name != name.strip()]:
        raise InputError(
            f"{kind} ids: expected no white space, which parts the columns of these files, got {len(wrong)} with it, "
            f"such as {wrong[0][:200]!r}"
        )
