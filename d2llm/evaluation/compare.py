"""Several systems measured on the same data, side by side: as text, Markdown or JSON."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

from numpy.typing import ArrayLike

from d2llm.errors import FormatError, InputError
from d2llm.evaluation.significance import Difference
from d2llm.files import read_json, write_json

Scores: TypeAlias = ArrayLike | Mapping[Any, Mapping[Any, float]]

#: Columns that describe a row rather than rank it, and the digits behind the point that they have.
_NOT_RANKED = {"queries": 0, "pairs": 0, "accuracy_threshold": 3, "f1_threshold": 3}
#: Cost: milliseconds to encode or index a passage, milliseconds to search with a query, bytes that a passage takes;
#: for pairs, milliseconds a pair.
COSTS = {"encode_ms": 2, "search_ms": 1, "pair_ms": 2, "bytes": 0}
_DIGITS = _NOT_RANKED | COSTS
_SCORE_DIGITS = 3

_Cells: TypeAlias = Iterable[list[str]]


@dataclass(frozen=True)
class Row:
    """One system: its name and its columns; the spread of those over several seeds, where there are some."""

    name: str
    metrics: dict[str, float]
    #: Standard deviation over the seeds (n - 1) of some columns.
    spread: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Contrast:
    """How one system differs from another in one metric."""

    system: str
    baseline: str
    metric: str
    found: Difference


@dataclass(frozen=True)
class Comparison:
    """Rows in the order given; columns that a row lacks are shown as a dash.

    Differences between rows, and what a reader should know of the data, each in a sentence, follow the table.
    """

    rows: tuple[Row, ...]
    contrasts: tuple[Contrast, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def columns(self) -> list[str]:
        """Every column of any row, in order of first appearance; costs last."""
        names = dict.fromkeys(name for row in self.rows for name in row.metrics)
        return [name for name in names if name not in COSTS] + [name for name in names if name in COSTS]

    def best(self, column: str) -> float | None:
        """The highest value of a metric as it is printed; None for columns that do not rank."""
        values = [row.metrics[column] for row in self.rows if column in row.metrics]
        return None if column in _DIGITS or not values else round(max(values), _SCORE_DIGITS)

    def to_text(self, columns: Sequence[str] | None = None) -> str:
        """Aligned plain text, the best value of a column marked with an asterisk.

        Raises:
            InputError: for a column that no row has.
        """
        header, *body = self._cells(columns, lambda cell, best: cell + ("*" if best else " "))
        tables = [[[header[0], *(cell + " " for cell in header[1:])], *body]]
        tables += [list(self._contrast_cells())] if self.contrasts else []
        return "\n\n".join([*map(_aligned, tables), *(["\n".join(self.notes)] if self.notes else [])])

    def to_markdown(self, columns: Sequence[str] | None = None) -> str:
        """Markdown tables, the best value of a column in bold.

        Raises:
            InputError: for a column that no row has.
        """
        tables = [self._cells(columns, lambda cell, best: f"**{cell}**" if best else cell)]
        tables += [self._contrast_cells()] if self.contrasts else []
        notes = ["\n".join(f"- {note}" for note in self.notes)] if self.notes else []
        return "\n\n".join([*map(_markdown, tables), *notes])

    def to_dict(self) -> dict[str, Any]:
        """``systems`` {name: {column: value}}, ``spread`` likewise, ``differences`` and ``notes``, unrounded."""
        return {
            "systems": {row.name: row.metrics for row in self.rows},
            "spread": {row.name: row.spread for row in self.rows if row.spread},
            "differences": [
                {"system": each.system, "baseline": each.baseline, "metric": each.metric, **asdict(each.found)}
                for each in self.contrasts
            ],
            "notes": list(self.notes),
        }

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "Comparison":
        """What :meth:`save` wrote.

        Raises:
            MissingError: if there is no such file.
            FormatError: if it holds something else.
        """
        found = read_json(path)
        try:
            rows = tuple(Row(name, row, found["spread"].get(name, {})) for name, row in found["systems"].items())
            contrasts = tuple(
                Contrast(each.pop("system"), each.pop("baseline"), each.pop("metric"), Difference(**each))
                for each in found["differences"]
            )
            return cls(rows, contrasts, tuple(found["notes"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise FormatError(f"{os.fspath(path)}: not the results of an evaluation ({error!r:.200})") from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write ``to_dict`` as JSON, atomically."""
        write_json(path, self.to_dict())

    def __str__(self) -> str:
        return self.to_text()

    def _cells(self, columns: Sequence[str] | None, mark: Callable[[str, bool], str]) -> _Cells:
        columns = self.columns if columns is None else columns
        if unknown := [name for name in columns if name not in self.columns]:
            raise InputError(f"columns: expected some of {self.columns}, got {unknown}")
        yield ["system", *columns]
        best = {name: self.best(name) for name in columns}
        for row in self.rows:
            cells = []
            for name in columns:
                value = row.metrics.get(name)
                is_best = value is not None and best[name] is not None and round(value, _SCORE_DIGITS) == best[name]
                cells.append(mark(_format(name, value, row.spread.get(name)), is_best))
            yield [row.name, *cells]

    def _contrast_cells(self) -> _Cells:
        yield ["difference", "metric", "value", "95 % interval", "p"]
        for each in self.contrasts:
            found = each.found
            yield [
                f"{each.system} − {each.baseline}",
                each.metric,
                f"{found.value:+.{_SCORE_DIGITS}f}",
                f"{found.low:+.{_SCORE_DIGITS}f} to {found.high:+.{_SCORE_DIGITS}f}",
                f"{found.p:.4f}",
            ]


def compare(systems: Mapping[str, Scores], metrics: Callable[[Any], Mapping[str, float]]) -> Comparison:
    """Measure every system with the same metrics.

    Args:
        systems: {name: scores}, such as ``{"BM25": bm25.scores(queries), "student IEM": score_matrix}``.
        metrics: scores -> {metric: value}, such as ``lambda scores: ir_metrics(scores, qrels)``.

    Returns:
        A ``Comparison`` with one row a system, in order.

    Raises:
        InputError: for no systems, and whatever ``metrics`` raises, with the system's name put in front.
    """
    if not systems:
        raise InputError("systems: expected at least one, got none")
    rows = []
    for name, scores in systems.items():
        try:
            rows.append(Row(name, dict(metrics(scores))))
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
    return Comparison(tuple(rows))


def _format(column: str, value: float | None, spread: float | None) -> str:
    if value is None:
        return "-"
    digits = _DIGITS.get(column, _SCORE_DIGITS)
    return f"{value:.{digits}f}" + ("" if spread is None else f" ±{spread:.{digits}f}")


def _aligned(table: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[number]) for row in table) for number in range(len(table[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in table
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _markdown(table: _Cells) -> str:
    header, *body = table
    lines = [
        header,
        ["---", *("---:" for _ in header[1:])],
        *([row[0].replace("|", r"\|"), *row[1:]] for row in body),
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
