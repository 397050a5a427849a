"""TREC run files as teachers: what some ranker gave each query, read as groups that carry its scores."""

import os
from collections.abc import Collection, Iterator
from pathlib import Path

from d2llm.data.example import Example
from d2llm.data.jsonl import read_documents
from d2llm.data.rows import parse_lazily, text_lines
from d2llm.errors import FormatError
from d2llm.tasks import ASYM


def read_ranked(
    run: str | os.PathLike[str],
    queries: str | os.PathLike[str],
    corpus: str | os.PathLike[str],
    task: str = ASYM,
    depth: int = 1000,
) -> list[Example]:
    """A query of a run as an example: its first passage the positive, the others negatives, with the run's scores.

    A score x becomes the logits (x, 0), so that the teacher's log-odds are the scores. What the losses on a teacher's
    probabilities make of them is worth little where they are none; those of :mod:`d2llm.rank_losses` read order and
    margins. Of a text that a query found twice the better place counts; queries that found one text alone are left
    out.

    Args:
        run: the run file.
        queries: texts of its queries by id, see :func:`read_texts`.
        corpus: texts of its passages by id.
        task: "sym" or "asym".
        depth: passages kept of each query.

    Raises:
        MissingError: if a file is absent.
        FormatError: naming ``file:line: what`` for up to 20 faulty lines, ids without a text, or a run in which no
            query found two texts.
    """
    # Imported here: what evaluates brings trec_eval along.
    from d2llm.evaluation.run import NOTHING
    from d2llm.evaluation.trec import read_run

    ranked = read_run(run, depth)
    asked, found = read_texts(queries, set(ranked.queries)), read_texts(corpus, set(ranked.passages))
    for kind, ids, texts, file in (
        ("query", ranked.queries, asked, queries),
        ("passage", ranked.passages, found, corpus),
    ):
        if unknown := [identifier for identifier in ids if identifier not in texts]:
            raise FormatError(f"{run}: {kind} {unknown[0]!r:.200} and {len(unknown) - 1} more are not in {file}")
    examples = []
    for query, indices, scores in zip(ranked.queries, ranked.indices.tolist(), ranked.scores.tolist(), strict=True):
        best: dict[str, float] = {}
        for index, score in zip(indices, scores, strict=True):
            if index != NOTHING:
                best.setdefault(found[ranked.passages[index]], score)
        if len(best) > 1:
            positive, *negatives = best
            logits = tuple((score, 0.0) for score in best.values())
            examples.append(Example(asked[query], positive, tuple(negatives), task, logits))
    if not examples:
        raise FormatError(f"{run}: expected a query with two passages of different texts, got none")
    return examples


def read_texts(path: str | os.PathLike[str], wanted: Collection[str]) -> dict[str, str]:
    """Texts by id, those ``wanted`` alone: a corpus of millions is read past.

    ``.jsonl``: objects as :func:`d2llm.data.jsonl.read_corpus` reads them; any other file: id, tab and text a line, as
    MS MARCO's ``collection.tsv`` and ``queries.tsv``.

    Raises:
        MissingError: if there is no such file.
        FormatError: naming ``file:line: what`` for up to 20 faulty lines; naming an id that stands twice.
    """
    path = Path(path)
    rows = read_documents(path, fields=()) if path.suffix.lower() == ".jsonl" else _numbered_texts(path)
    texts: dict[str, str] = {}
    for identifier, text, *_ in rows:
        if identifier in wanted:
            if identifier in texts:
                raise FormatError(f"{path}: id: {identifier!r:.200} stands twice")
            texts[identifier] = text
    return texts


def _numbered_texts(path: Path) -> Iterator[tuple[str, str]]:
    """Rows of id, tab and text."""

    def parse(line: str) -> Iterator[tuple[str, str]]:
        identifier, tab, text = line.partition("\t")
        if not tab or not identifier.strip() or not text.strip():
            raise FormatError(f"expected an id, a tab and a text, got {line[:200]!r}")
        yield identifier, text

    filled = ((line, row) for line, row in text_lines(path) if not isinstance(row, str) or row.strip())
    return parse_lazily(path, filled, parse)
