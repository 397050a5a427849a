"""Tables of labelled text pairs: inference (NLI), similarity (STS), answer selection."""

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from d2llm.data.example import Example
from d2llm.data.rows import check_distinct, parse_number, parse_rows, table_rows
from d2llm.errors import FormatError, InputError
from d2llm.tasks import SYM

KINDS = ("nli", "sts")
#: From this label on a pair counts as positive: entailment, or 4 on the 0-5 scale of STS.
THRESHOLDS = {"nli": 0.5, "sts": 4.0}

_FIRST = ("sentence1", "sentence_a", "premise", "text1", "qtext", "question", "query")
_SECOND = ("sentence2", "sentence_b", "hypothesis", "text2", "atext", "answer", "passage")
_GRADES = {
    "nli": ("label", "gold_label", "entailment_judgment", "entailment_label"),
    "sts": ("score", "relatedness_score", "similarity", "similarity_score", "label"),
}
_POSITIVE = {"entailment", "entails", "yes", "true"}
_NEGATIVE = {"neutral", "contradiction", "not_entailment", "no", "false"}
#: SNLI and MultiNLI mark pairs whose annotators did not agree.
_NO_LABEL = {"-", ""}


class LabelledPairs(NamedTuple):
    """N pairs of texts and N labels: 1 or 0 for NLI, a grade for STS."""

    pairs: list[tuple[str, str]]
    labels: list[float]


class _Columns(NamedTuple):
    first: int
    second: int
    grade: int
    width: int


def read_pairs(path: str | os.PathLike[str], kind: str) -> LabelledPairs:
    """Read a table of pairs: ``.csv`` with commas, anything else with tabs.

    A first row that holds a known column name is the header (any case): sentence1/sentence2,
    sentence_A/sentence_B, premise/hypothesis, qtext/atext, question/answer, query/passage; label,
    gold_label or entailment_judgment for "nli"; score, relatedness_score, similarity or label for
    "sts". Without a header the first three columns are the two texts and the label.

    Labels of "nli": entailment (yes, true, 1) is 1; neutral, contradiction (no, false, 0) are 0;
    pairs without agreed label ("-" or nothing) are left out. Labels of "sts" are numbers.

    Raises:
        InputError: for an unknown kind.
        MissingError: if there is no such file.
        FormatError: naming ``file:line: what`` for up to 20 faulty rows, or for an empty table.
    """
    if kind not in KINDS:
        raise InputError(f"kind: expected one of {KINDS}, got {kind!r}")
    path = Path(path)
    columns: _Columns | None = None

    def parse(cells: list[str]) -> Iterator[tuple[tuple[str, str], float]]:
        nonlocal columns
        if columns is None:
            found = pair_columns(cells, kind)
            columns = found or _Columns(0, 1, 2, len(cells))
            if found:
                check_distinct([cell.strip().lower() for cell in cells])
                return
        if len(cells) != columns.width or columns.width < 3:
            raise FormatError(f"expected {max(columns.width, 3)} columns, got {len(cells)}")
        first, second = cells[columns.first].strip(), cells[columns.second].strip()
        if not first or not second:
            raise FormatError(f"expected two non-empty texts, got {first!r:.200} and {second!r:.200}")
        label = _label(cells[columns.grade].strip(), kind)
        if label is not None:
            yield (first, second), label

    rows = parse_rows(path, table_rows(path), parse)
    if not rows:
        raise FormatError(f"{path}: expected labelled pairs below the header, got none")
    return LabelledPairs([pair for pair, _ in rows], [label for _, label in rows])


def pairs_to_examples(
    pairs: Sequence[tuple[str, str]], labels: Sequence[float], threshold: float, task: str = SYM
) -> list[Example]:
    """Training examples of labelled pairs: every positive pair, with the first text's other pairs as negatives.

    Args:
        pairs: N (first, second) texts.
        labels: N numbers.
        threshold: a pair is positive from this label on.
        task: "sym" or "asym".

    Returns:
        Examples in the order of the positive pairs, each distinct pair once; a first text without
        any positive pair gives none.

    Raises:
        InputError: if lengths differ or no pair is positive.
    """
    if len(pairs) != len(labels):
        raise InputError(f"labels: expected {len(pairs)}, one a pair, got {len(labels)}")
    positive: dict[tuple[str, str], None] = {}
    negatives: dict[str, dict[str, None]] = {}
    for (first, second), label in zip(pairs, labels, strict=True):
        if label >= threshold:
            positive[first, second] = None
        else:
            negatives.setdefault(first, {})[second] = None
    if not positive:
        raise InputError(f"labels: expected some from {threshold} on, the highest is {max(labels, default=math.nan)}")
    return [
        Example(first, second, tuple(n for n in negatives.get(first, ()) if (first, n) not in positive), task)
        for first, second in positive
    ]


def pair_columns(header: Sequence[str], kind: str) -> _Columns | None:
    """Where a header has the two texts and the label of ``kind``; None if it does not name all three."""
    names = [cell.strip().lower() for cell in header]

    def where(aliases: Sequence[str]) -> int | None:
        return next((names.index(alias) for alias in aliases if alias in names), None)

    first, second, grade = where(_FIRST), where(_SECOND), where(_GRADES[kind])
    if first is None or second is None or grade is None:
        return None
    return _Columns(first, second, grade, len(names))


def _label(text: str, kind: str) -> float | None:
    word = text.lower()
    if kind == "nli":
        if word in _NO_LABEL:
            return None
        if word in _POSITIVE or word in _NEGATIVE:
            return float(word in _POSITIVE)
    number = parse_number(text)
    if number is None or (kind == "nli" and number not in (0.0, 1.0)):
        expected = "a number" if kind == "sts" else "entailment, neutral, contradiction, 1 or 0"
        raise FormatError(f"label: expected {expected}, got {text!r:.200}")
    return number
