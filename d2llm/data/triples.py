"""Tables without a header: a query, a positive and perhaps negatives a row, as MS MARCO's triples."""

import os
from collections.abc import Iterator
from pathlib import Path

from d2llm.data.example import Example
from d2llm.data.rows import parse_lazily, table_rows
from d2llm.data.runs import read_texts
from d2llm.errors import FormatError, InputError


def iterate_triples(
    path: str | os.PathLike[str],
    task: str,
    queries: str | os.PathLike[str] | None = None,
    corpus: str | os.PathLike[str] | None = None,
) -> Iterator[Example]:
    """Read rows one by one: columns count by order, empty negatives are skipped.

    Args:
        path: ``.csv`` with commas, anything else with tabs.
        task: "sym" or "asym".
        queries, corpus: texts by id, where the rows hold ids (see :func:`d2llm.data.runs.read_texts`).

    Raises:
        InputError: for one of both files alone.
        MissingError: if a file is absent.
        FormatError: at the end, naming ``file:line: what`` for up to 20 faulty rows, unknown ids included.
    """
    path = Path(path)
    if (queries is None) != (corpus is None):
        raise InputError(f"corpus, queries: expected both or neither, got {corpus} and {queries}")
    texts: tuple[dict[str, str], dict[str, str]] | None = None
    if queries is not None and corpus is not None:
        asked: set[str] = set()
        held: set[str] = set()
        for _, row in table_rows(path):
            if not isinstance(row, FormatError):
                asked.add(row[0].strip())
                held.update(cell.strip() for cell in row[1:])
        texts = read_texts(queries, asked), read_texts(corpus, held)

    def parse(cells: list[str]) -> Iterator[Example]:
        query, *passages = (cell.strip() for cell in cells)
        passages = [*passages[:1], *filter(None, passages[1:])]
        if not passages:
            raise FormatError(f"expected a query, a positive and perhaps negatives, got {cells!s:.200}")
        if texts is not None:
            for name, identifier, known in (("query", query, texts[0]), *(("passage", p, texts[1]) for p in passages)):
                if identifier not in known:
                    raise FormatError(f"{name}: {identifier!r:.200} is not in {queries if name == 'query' else corpus}")
            query, passages = texts[0][query], [texts[1][passage] for passage in passages]
        yield Example(query, passages[0], tuple(passages[1:]), task)

    return parse_lazily(path, table_rows(path), parse)
