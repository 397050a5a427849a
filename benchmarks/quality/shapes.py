"""What a passage had better say of a function: the same questions over the same functions, put down in several ways."""

import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from benchmarks.quality.asked import Asked
from benchmarks.quality.measured import LEXICAL, WAYS, Measured, interval
from benchmarks.quality.sets import sets
from d2llm.data.docstrings import (
    DOCUMENTED_CHARACTERS,
    PASSAGE_CHARACTERS,
    Function,
    by_name,
    source_functions,
    standard_library_functions,
)
from d2llm.data.validation import Validation

PART = "shapes"
_SYSTEM = "shipped"
_BEGINNING = f"docstring's first {DOCUMENTED_CHARACTERS} characters"

#: Of the standard library's functions, for everyday questions. The first is what ``d2llm search`` opens, and what the
#: others are held against.
SHAPES: dict[str, Callable[[Function], str]] = {
    f"name, signature, {_BEGINNING}": lambda function: function.documented,
    "code": lambda function: function.code,
    "name, code": lambda function: f"{function.name}\n{function.code}",
    "name, docstring, code": lambda function: f"{function.name}\n{_docstring(function)}\n{function.code}",
    "name, signature, docstring": lambda function: f"{function.name}\n{function.signature}\n{_docstring(function)}",
    "name, signature, docstring's first sentence": (
        lambda function: f"{function.name}\n{function.signature}\n{function.query}"
    ),
}
#: Of CoSQA's functions, which come whole.
WHOLE = "signature, docstring, code"


def blocks(asked: Asked) -> dict[str, list[str]]:
    """Measure what is not measured yet: a table of all that is."""
    measured, known = Measured(asked.work, PART), sets(asked.cosqa)
    everyday = known["everyday"]()
    functions = {function.code: function for function in by_name(standard_library_functions()).values()}
    shapes = {
        f"everyday: {name}": [shape(functions[code]) for code in everyday.passages] for name, shape in SHAPES.items()
    }
    lines = [
        f"| passages | BM25 | {' | '.join(WAYS)} | hybrid over the first, 95 % |",
        f"| --- | ---: |{' ---: |' * len(WAYS)} ---: |",
        *rows(measured, asked, everyday, shapes),
    ]
    if asked.cosqa is not None:
        data = known["cosqa"]()
        shapes = {f"cosqa: {WHOLE}": data.passages, f"cosqa: signature, {_BEGINNING}": beginnings(data.passages)}
        lines += rows(measured, asked, data, shapes)
    return {PART: lines}


def rows(measured: Measured, asked: Asked, data: Validation, shapes: dict[str, Sequence[str]]) -> list[str]:
    """Markdown lines of a set of questions, over its passages in several shapes."""
    systems = (LEXICAL, *(f"{_SYSTEM}, {way}" for way in WAYS))
    first, *_ = shapes
    lines = []
    for shape, passages in shapes.items():
        measured.measure(shape, replace(data, passages=tuple(passages)), {_SYSTEM: asked.student})
        found = [measured.known(shape, system) for system in systems]
        over = "" if shape == first else interval(found[-1], measured.known(first, systems[-1]))
        lines.append(f"| {shape} | {' | '.join(f'{ranks.mean():.3f}' for ranks in found)} | {over} |")
    return lines


def beginnings(sources: Iterable[str]) -> list[str]:
    """Signature and beginning of the docstring of the functions of these sources, whole where they have none."""
    found = ((source, next(source_functions(textwrap.dedent(source), ""), None)) for source in sources)
    return [source if of is None else of.documented.partition("\n")[2] for source, of in found]


def _docstring(function: Function) -> str:
    return function.docstring[:PASSAGE_CHARACTERS].rstrip().encode(errors="replace").decode()
