"""Training data in the row formats of other projects, read as examples.

Scores in those files are single numbers, while D2LLM keeps the teacher's two raw logits. A logit x
becomes (x, 0), a probability p becomes (log p, log(1 - p)): softmax gives the same probability back.
"""

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from d2llm.data.beir import read_beir, read_tevatron
from d2llm.data.columnar import is_columnar, object_rows, require_rows
from d2llm.data.example import Example
from d2llm.data.example_file import open_examples
from d2llm.data.jsonl import KEYS, iterate_examples, optional_list, required_text
from d2llm.data.pairs import KINDS, THRESHOLDS, pair_columns, pairs_to_examples, read_pairs
from d2llm.data.rows import (
    as_number,
    check_distinct,
    parse_lazily,
    table_rows,
)
from d2llm.data.runs import read_ranked
from d2llm.data.triples import iterate_triples
from d2llm.errors import FormatError, InputError, shown
from d2llm.files import parse_json
from d2llm.tasks import ASYM, SYM

FORMATS = ("d2llm", "sentence-transformers", "flagembedding", "tevatron", "beir", "nli", "sts", "triples", "trec")
SCORES = ("auto", "logit", "probability", "drop")

#: How the column of queries is called, in lower case. Others count by their order, whatever their names.
_QUERY_COLUMNS = ("query", "anchor", "question", "sentence", "sentence1", "sentence_a", "text", "text1", "premise")
_SCORE_COLUMNS = ("score", "scores", "label", "labels")
#: Probabilities of exactly 0 or 1 have no finite logit.
_SMALLEST_PROBABILITY = 1e-7

#: An example and the single-number scores of its passages, if the row has any.
_Scored: TypeAlias = tuple[Example, list[float] | None]


def read_any(
    path: str | os.PathLike[str],
    format: str = "auto",
    *,
    task: str | None = None,
    corpus: str | os.PathLike[str] | None = None,
    queries: str | os.PathLike[str] | None = None,
    split: str = "train",
    scores: str = "auto",
    threshold: float | None = None,
) -> list[Example]:
    """All that :func:`iterate_any` gives."""
    return list(
        iterate_any(
            path, format, task=task, corpus=corpus, queries=queries, split=split, scores=scores, threshold=threshold
        )
    )


def open_any(path: str | os.PathLike[str], format: str = "auto") -> Sequence[Example]:
    """The examples of any known format, those of a large JSONL file of d2llm's read one by one as they are asked for.

    Raises:
        InputError, MissingError, FormatError: as :func:`iterate_any`.
    """
    name = sniff(path) if format == "auto" else format
    return open_examples(path) if name == "d2llm" else read_any(path, name)


def iterate_any(
    path: str | os.PathLike[str],
    format: str = "auto",
    *,
    task: str | None = None,
    corpus: str | os.PathLike[str] | None = None,
    queries: str | os.PathLike[str] | None = None,
    split: str = "train",
    scores: str = "auto",
    threshold: float | None = None,
) -> Iterator[Example]:
    """Read training examples of any known format, a row at a time where a row is all that an example needs.

    Those are d2llm, sentence-transformers, flagembedding and triples of texts; the other formats are read whole.

    Args:
        path: a file, the folder of a BEIR collection, or one of rows that ``save_to_disk`` of datasets wrote.
        format: one of ``FORMATS``, or "auto" to tell by the suffix and the first row.
        task: "sym" or "asym"; by default "sym" for nli and sts, else "asym". Files of the d2llm
            format name it themselves.
        corpus: the passages that Tevatron rows, a TREC run or triples of ids refer to.
        queries: the queries that a TREC run or triples of ids refer to.
        split: the split of a BEIR folder.
        scores: what single numbers of passages are: "logit", "probability", "drop" to ignore them, or "auto":
            probabilities if all of the file lie in [0, 1], else logits, for which it is read twice.
        threshold: from which label on a pair of nli or sts is positive; by default 0.5 and 4.

    Raises:
        InputError: for an unknown format, or one that cannot be told.
        MissingError: if a file is absent.
        FormatError: naming ``file:line: what`` for up to 20 faulty rows.
    """
    path = Path(path)
    name = sniff(path) if format == "auto" else format
    if name not in FORMATS:
        raise InputError(f"format: expected one of {('auto', *FORMATS)}, got {format!r}")
    if name == "d2llm":
        return iterate_examples(path)
    if name == "sentence-transformers":
        return _with_logits(lambda: _ordered_rows(path, task or ASYM), scores)
    if name == "flagembedding":
        return _with_logits(lambda: _flagembedding_rows(path, task or ASYM), scores)
    if name == "triples":
        return iterate_triples(path, task or ASYM, queries, corpus)
    if name in KINDS:
        pairs, labels = read_pairs(path, name)
        least = THRESHOLDS[name] if threshold is None else threshold
        return iter(pairs_to_examples(pairs, labels, least, task or SYM))
    if name == "beir":
        return iter(read_beir(path, split).examples(task or ASYM))
    if name == "tevatron":
        return iter(read_tevatron(path, corpus, task or ASYM))
    if corpus is None or queries is None:
        raise InputError(f"corpus, queries: expected the files that {path} refers to, got {corpus} and {queries}")
    return iter(read_ranked(path, queries, corpus, task or ASYM))


def _ordered_rows(path: Path, task: str) -> Iterator[_Scored]:
    """Rows of sentence-transformers, whose columns count by order: query, positive, negatives and perhaps scores.

    JSONL or columns, or a ``.csv`` or tab-separated table with a header. A last column named score(s) or label(s) holds
    one number for the positive and each negative.
    """
    return parse_lazily(path, _named_rows(path), lambda row: [_ordered(row, task)])


def _named_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number, object) for every row that has its columns' names, by itself or by the header of its table."""
    if _holds_objects(path):
        yield from object_rows(path)
        return
    header: list[str] = []
    for line, cells in table_rows(path):
        if isinstance(cells, FormatError):
            yield line, cells
        elif not header:
            header = [cell.strip() for cell in cells]
            try:
                check_distinct(header)
                check_header(header)
            except FormatError as error:
                yield line, error
        elif len(cells) != len(header):
            yield line, FormatError(f"expected {len(header)} columns, got {len(cells)}")
        else:
            yield line, dict(zip(header, cells, strict=True))


def _holds_objects(path: Path) -> bool:
    """Whether rows bring their columns' names."""
    return path.suffix.lower() in (".jsonl", ".json") or is_columnar(path)


def check_header(cells: Sequence[str]) -> None:
    """Make sure that the first row of a table names its columns, and is no example that would be lost.

    Raises:
        FormatError: if its first cell is no usual name of a query's column.
    """
    if cells[0].lower() not in _QUERY_COLUMNS:
        raise FormatError(
            f"columns: expected the first row to name them, the first one of {', '.join(_QUERY_COLUMNS)}; got "
            f"{list(cells)!s:.200}; add such a row, or name the format 'triples' for a table without one"
        )


def _flagembedding_rows(path: Path, task: str) -> Iterator[_Scored]:
    """Rows of FlagEmbedding: query, pos[], neg[], and perhaps pos_scores[] and neg_scores[].

    Every positive gives one example with all of the row's negatives.
    """

    def parse(row: Mapping[str, Any]) -> Iterator[_Scored]:
        query = required_text(row, "query")
        positives, negatives = _texts("pos", row.get("pos")), _texts("neg", optional_list(row, "neg"))
        if not positives:
            raise FormatError("pos: expected at least one text, got none")
        high, low = row.get("pos_scores"), row.get("neg_scores")
        scored = high is not None and (low is not None or not negatives)
        of_positives = _numbers("pos_scores", high, len(positives)) if scored else []
        of_negatives = _numbers("neg_scores", [] if low is None else low, len(negatives)) if scored else []
        for number, positive in enumerate(positives):
            example = Example(query, positive, tuple(negatives), task)
            yield example, [of_positives[number], *of_negatives] if scored else None

    return parse_lazily(path, object_rows(path), parse)


def sniff(path: str | os.PathLike[str]) -> str:
    """Tell the format of a file or folder by its suffix and its first row.

    Raises:
        InputError: if it cannot be told, or if a table has both an NLI label and an STS score.
        MissingError: if there is no such file.
        FormatError: if the first row cannot be read.
    """
    path = Path(path)
    if path.is_dir() and not is_columnar(path):
        return "beir"
    require_rows(path)
    rows: Iterator[tuple[int, Any]] = object_rows(path) if _holds_objects(path) else table_rows(path)
    line, row = next(rows, (1, FormatError("the file is empty")))
    if isinstance(row, FormatError):
        raise FormatError(f"{path}:{line}: {row}")
    return _sniff_table(path, list(row)) if not isinstance(row, Mapping) else _sniff_object(row)


def _sniff_object(row: Mapping[str, Any]) -> str:
    if "pos" in row:
        return "flagembedding"
    if "positive_document_ids" in row or "positive_passages" in row:
        return "tevatron"
    columns = [key for key in row if key not in _SCORE_COLUMNS]
    # Both formats may start with query, positive; a column a negative, or one number a passage
    # where two logits should be, makes it the other project's.
    numbered = any(key.lower().startswith("neg") and key not in KEYS for key in columns)
    scores = row.get("scores")
    single = isinstance(scores, list) and not any(isinstance(pair, list) for pair in scores)
    if "query" in row and "positive" in row and not numbered and not single:
        return "d2llm"
    if len(columns) >= 2 and all(isinstance(row[key], str) for key in columns[:2]):
        return "sentence-transformers"
    raise InputError(f"format: cannot be told from keys {list(row)!s:.200}; name one of {FORMATS}")


def _sniff_table(path: Path, header: Sequence[str]) -> str:
    # A column "label" may hold either; it is taken for classes unless there is a score to tell.
    grades = [cell for cell in header if cell.strip().lower() != "label"]
    classes, similarity = pair_columns(header, "nli"), pair_columns(grades, "sts")
    if classes and similarity:
        raise InputError(f"format: {path} has both a label and a score; name 'nli' or 'sts'")
    if classes or similarity:
        return "nli" if classes else "sts"
    if len(header) >= 2:
        return "sentence-transformers"
    raise InputError(f"format: cannot be told from columns {list(header)!s:.200}; name one of {FORMATS}")


def _ordered(row: Mapping[str, Any], task: str) -> _Scored:
    columns = list(row)
    score_column = columns.pop() if columns and columns[-1].lower() in _SCORE_COLUMNS else None
    if len(columns) < 2:
        raise FormatError(f"expected query, positive and perhaps negatives, got columns {list(row)!s:.200}")
    negatives: list[str] = []
    for column in columns[2:]:
        # Rows with fewer negatives than columns leave the last ones empty.
        if row[column] not in (None, ""):
            negatives += _texts(column, row[column] if isinstance(row[column], list) else [row[column]])
    query, positive = required_text(row, columns[0]), required_text(row, columns[1])
    scores = None if score_column is None else row[score_column]
    if isinstance(scores, str):
        try:
            scores = parse_json(scores)
        except FormatError:
            raise FormatError(f"{score_column}: expected a list of numbers, got {shown(scores)}") from None
    values = None if scores is None else _numbers(str(score_column), scores, 1 + len(negatives))
    return Example(query, positive, tuple(negatives), task), values


def _with_logits(read: Callable[[], Iterator[_Scored]], scores: str) -> Iterator[Example]:
    """The examples of rows that can be read again and again."""
    if scores not in SCORES:
        raise InputError(f"scores: expected one of {SCORES}, got {scores!r}")
    if scores == "auto":
        every = (value for _, values in read() for value in values or ())
        scores = "probability" if all(0 <= value <= 1 for value in every) else "logit"
    for example, values in read():
        if values is not None and scores != "drop":
            example = replace(example, scores=tuple(_logits(value, scores) for value in values))
        yield example


def _logits(value: float, kind: str) -> tuple[float, float]:
    if kind == "logit":
        return value, 0.0
    if not 0 <= value <= 1:
        raise InputError(f"scores: expected probabilities in [0, 1], got {value}")
    probability = min(max(value, _SMALLEST_PROBABILITY), 1 - _SMALLEST_PROBABILITY)
    return math.log(probability), math.log1p(-probability)


def _texts(name: str, value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(text, str) and text.strip() for text in value):
        raise FormatError(f"{name}: expected a list of non-empty texts, got {shown(value)}")
    return value


def _numbers(name: str, value: Any, count: int) -> list[float]:
    if not isinstance(value, list) or len(value) != count:
        raise FormatError(f"{name}: expected a list of {count} numbers, one a passage, got {shown(value)}")
    numbers = [number for number in map(as_number, value) if number is not None]
    if len(numbers) < len(value):
        raise FormatError(f"{name}: expected finite numbers, got {shown(value)}")
    return numbers
