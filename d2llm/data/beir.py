"""Retrieval collections with ids: the BEIR folder and Tevatron rows."""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from d2llm.data.columnar import object_rows, require_rows
from d2llm.data.example import Example
from d2llm.data.jsonl import optional_list, passage_id, read_corpus, required_text, titled_text
from d2llm.data.rows import parse_rows, require_file, table_rows
from d2llm.errors import FormatError, MissingError, shown
from d2llm.tasks import ASYM


@dataclass(frozen=True)
class Collection:
    """A retrieval collection: texts by id and relevance judgements."""

    corpus: dict[str, str]
    queries: dict[str, str]
    #: {query id: {passage id: relevance}}, relevant where above 0.
    qrels: dict[str, dict[str, int]]

    def examples(self, task: str = ASYM) -> list[Example]:
        """One example for every relevant text of a query; passages judged irrelevant to the query are its negatives.

        Corpora hold texts twice, under two ids that may be judged either way: the relevant judgement counts.
        """
        made = []
        for query, row in self.qrels.items():
            positives = dict.fromkeys(self.corpus[passage] for passage, grade in row.items() if grade > 0)
            others = [self.corpus[passage] for passage, grade in row.items() if grade <= 0]
            negatives = tuple(text for text in others if text not in positives)
            made += [Example(self.queries[query], positive, negatives, task) for positive in positives]
        return made


def read_beir(folder: str | os.PathLike[str], split: str = "test") -> Collection:
    """Read ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/{split}.tsv``.

    Only queries that the split judges are kept.

    Raises:
        MissingError: for an absent file; for an absent split, naming those there are.
        FormatError: naming ``file:line: what`` for up to 20 faulty lines, unknown ids included.
    """
    folder = Path(folder)
    judgements = folder / "qrels" / f"{split}.tsv"
    if not judgements.is_file():
        there = sorted(file.stem for file in judgements.parent.glob("*.tsv"))
        raise MissingError(f"{judgements}: file not found; splits there: {there}")
    require_file(folder / "queries.jsonl")
    corpus, queries = dict(read_corpus(folder / "corpus.jsonl")), dict(read_corpus(folder / "queries.jsonl"))
    qrels: dict[str, dict[str, int]] = {}

    def judgement(cells: list[str]) -> Iterator[int]:
        if cells[:2] == ["query-id", "corpus-id"]:
            return
        if len(cells) != 3:
            raise FormatError(f"expected query-id, corpus-id and score, got {len(cells)} columns")
        query, passage, score = (cell.strip() for cell in cells)
        for name, identifier, texts in (("query-id", query, queries), ("corpus-id", passage, corpus)):
            if identifier not in texts:
                raise FormatError(f"{name}: {identifier!r:.200} is not in the collection")
        if not re.fullmatch(r"[+-]?[0-9]{1,9}", score):
            raise FormatError(f"score: expected an integer, got {score!r:.200}")
        grade = qrels.setdefault(query, {}).setdefault(passage, int(score))
        if grade != int(score):
            raise FormatError(f"score: {query!r:.200} and {passage!r:.200} are judged {grade} already, got {score}")
        yield grade

    parse_rows(judgements, table_rows(judgements), judgement)
    return Collection(corpus, {query: queries[query] for query in qrels}, qrels)


def read_tevatron(
    path: str | os.PathLike[str], corpus: str | os.PathLike[str] | None = None, task: str = ASYM
) -> list[Example]:
    """Read Tevatron training rows, one example for every positive.

    Either ``query_text`` with ``positive_document_ids`` and ``negative_document_ids`` into a corpus,
    or ``query`` with ``positive_passages`` and ``negative_passages`` ({title, text} objects) in place.

    Args:
        path: the rows, JSONL or columns.
        corpus: the JSONL file of passages (``docid``, ``title``, ``text``), for rows with ids; by
            default ``corpus.jsonl`` beside ``path``.
        task: "sym" or "asym".

    Raises:
        MissingError: if a file is absent.
        FormatError: naming ``file:line: what`` for up to 20 faulty rows, unknown ids included.
    """
    path = require_rows(path)
    corpus_path = path.parent / "corpus.jsonl" if corpus is None else Path(corpus)
    texts: dict[str, str] = {}
    ids = ("positive_document_ids", "negative_document_ids")

    def rows() -> Iterator[tuple[int, Any]]:
        for line, row in object_rows(path):
            # Outside the rows' own faults: those of the corpus end the reading, or every row would tell them again.
            if not texts and isinstance(row, Mapping) and any(map(row.get, ids)):
                texts.update(read_corpus(corpus_path))
            yield line, row

    def passages(row: Mapping[str, Any], kind: str) -> list[str]:
        if f"{kind}_passages" in row:
            return [_inline(kind, passage) for passage in optional_list(row, f"{kind}_passages")]
        identifiers = [passage_id(identifier) for identifier in optional_list(row, f"{kind}_document_ids")]
        if unknown := [identifier for identifier in identifiers if identifier not in texts]:
            raise FormatError(f"{kind}_document_ids: {unknown[0]!r:.200} is not in {corpus_path}")
        return [texts[identifier] for identifier in identifiers]

    def parse(row: Mapping[str, Any]) -> Iterator[Example]:
        query = required_text(row, "query_text" if "query_text" in row else "query")
        positives, negatives = passages(row, "positive"), tuple(passages(row, "negative"))
        if not positives:
            raise FormatError("expected at least one positive, got none")
        yield from (Example(query, positive, negatives, task) for positive in positives)

    return parse_rows(path, rows(), parse)


def _inline(kind: str, passage: Any) -> str:
    if not isinstance(passage, dict):
        raise FormatError(f"{kind}_passages: expected objects with a text, got {shown(passage)}")
    return titled_text(passage)
