"""Several systems measured on the same data, side by side: as text, Markdown or JSON."""

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from numpy.typing import ArrayLike

from d2llm.errors import InputError
from d2llm.files import write_json

#: Scores as they are, or a function without arguments that computes them (and is timed).
Scores: TypeAlias = ArrayLike | Mapping[Any, Mapping[Any, float]]
System: TypeAlias = Scores | Callable[[], Scores]

#: Columns that describe a row rather than rank it: never marked as best.
_NOT_RANKED = ("seconds", "queries", "accuracy_threshold", "f1_threshold")
_SCORE_DIGITS = 3


@dataclass(frozen=True)
class Row:
    """One system: its name, its metrics and the seconds it took, where it was computed here."""

    name: str
    metrics: dict[str, float]
    seconds: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Rows in the order given; metrics that a row lacks are shown as a dash."""

    rows: tuple[Row, ...]

    @property
    def columns(self) -> list[str]:
        """Every metric of any row, in order of first appearance; ``seconds`` last where any row has it."""
        names = dict.fromkeys(name for row in self.rows for name in row.metrics)
        return [*names, *(["seconds"] if any(row.seconds is not None for row in self.rows) else [])]

    def best(self, column: str) -> float | None:
        """The highest value of a metric as it is printed; None for columns that do not rank."""
        values = [value for row in self.rows if (value := _value(row, column)) is not None]
        return None if column in _NOT_RANKED or not values else round(max(values), _SCORE_DIGITS)

    def to_text(self, columns: Sequence[str] | None = None) -> str:
        """Aligned plain text, the best value of a column marked with an asterisk.

        Raises:
            InputError: for a column that no row has.
        """
        header, *body = self._cells(columns, lambda cell, best: cell + ("*" if best else " "))
        table = [[header[0], *(cell + " " for cell in header[1:])], *body]
        widths = [max(len(row[number]) for row in table) for number in range(len(header))]
        lines = [
            "  ".join(
                [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
            ).rstrip()
            for row in table
        ]
        return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])

    def to_markdown(self, columns: Sequence[str] | None = None) -> str:
        """A Markdown table, the best value of a column in bold.

        Raises:
            InputError: for a column that no row has.
        """
        header, *body = self._cells(columns, lambda cell, best: f"**{cell}**" if best else cell)
        lines = [
            header,
            ["---", *("---:" for _ in header[1:])],
            *([row[0].replace("|", r"\|"), *row[1:]] for row in body),
        ]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)

    def to_dict(self) -> dict[str, dict[str, float]]:
        """{system: {metric: value}}, unrounded, with ``seconds`` where known."""
        return {row.name: row.metrics | ({} if row.seconds is None else {"seconds": row.seconds}) for row in self.rows}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write ``to_dict`` as JSON, atomically."""
        write_json(path, self.to_dict())

    def __str__(self) -> str:
        return self.to_text()

    def _cells(self, columns: Sequence[str] | None, mark: Callable[[str, bool], str]) -> Iterable[list[str]]:
        columns = self.columns if columns is None else columns
        if unknown := [name for name in columns if name not in self.columns]:
            raise InputError(f"columns: expected some of {self.columns}, got {unknown}")
        yield ["system", *columns]
        best = {name: self.best(name) for name in columns}
        for row in self.rows:
            cells = []
            for name in columns:
                value = _value(row, name)
                is_best = value is not None and best[name] is not None and round(value, _SCORE_DIGITS) == best[name]
                cells.append(mark(_format(name, value), is_best))
            yield [row.name, *cells]


def compare(systems: Mapping[str, System], metrics: Callable[[Any], Mapping[str, float]]) -> Comparison:
    """Measure every system with the same metrics.

    Args:
        systems: {name: scores}, or {name: function that returns them}, such as
            ``{"BM25": lambda: bm25.scores(queries), "student IEM": score_matrix}``.
        metrics: scores -> {metric: value}, such as ``lambda scores: ir_metrics(scores, qrels)``.

    Returns:
        A ``Comparison`` with one row a system, in order.

    Raises:
        InputError: for no systems, and whatever ``metrics`` raises, with the system's name put in front.
    """
    if not systems:
        raise InputError("systems: expected at least one, got none")
    rows = []
    for name, system in systems.items():
        start = time.perf_counter()
        scores = system() if callable(system) else system
        seconds = time.perf_counter() - start if callable(system) else None
        try:
            rows.append(Row(name, dict(metrics(scores)), seconds))
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
    return Comparison(tuple(rows))


def _value(row: Row, column: str) -> float | None:
    return row.seconds if column == "seconds" else row.metrics.get(column)


def _format(column: str, value: float | None) -> str:
    if value is None:
        return "-"
    return (
        f"{value:.0f}"
        if column == "queries"
        else f"{value:.1f}"
        if column == "seconds"
        else f"{value:.{_SCORE_DIGITS}f}"
    )
