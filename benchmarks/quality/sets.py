"""What students are asked: queries of several kinds, each over every passage there is.

Settings are chosen by every set but those of ``TESTS``, which are read for a final table alone.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from d2llm.data.cosqa import read_cosqa
from d2llm.data.docstrings import (
    below_names,
    by_name,
    hold_out,
    standard_library_functions,
    standard_library_names,
    standard_library_pairs,
)
from d2llm.data.example import Example
from d2llm.data.questions import read_questions
from d2llm.data.validation import Validation
from d2llm.demo.corpus import EVERYDAY, validation_pairs

#: What no setting is chosen by.
TESTS = ("test", "test-named")


def over_library(held_out: Iterable[Example]) -> Validation:
    """Held-out pairs, to be searched for among every passage of the standard library."""
    passages = list(dict.fromkeys(pair.positive for pair in standard_library_pairs()))
    rows = {text: row for row, text in enumerate(passages)}
    relevant: dict[str, set[int]] = {}
    for pair in held_out:
        relevant.setdefault(pair.query, set()).add(rows[pair.positive])
    return Validation(tuple(relevant), tuple(passages), tuple(map(frozenset, relevant.values())))


def named(data: Validation) -> Validation:
    """The same search where functions stand below their names."""
    names = standard_library_names()
    below = dict(zip(names, below_names(names), strict=True))
    return replace(data, passages=tuple(below[passage] for passage in data.passages))


def documented(data: Validation) -> Validation:
    """The same search where functions come with names and docstrings, as in the library that ``d2llm search`` opens."""
    told = {function.code: function.documented for function in by_name(standard_library_functions()).values()}
    return replace(data, passages=tuple(told[passage] for passage in data.passages))


def cosqa(folder: Path) -> Validation:
    """CoSQA's development part: queries that people typed, over Python functions."""
    found = read_cosqa(folder)
    rows = {name: row for row, name in enumerate(found.corpus)}
    relevant = (frozenset(rows[name] for name in found.qrels[query]) for query in found.queries)
    return Validation(tuple(found.queries.values()), tuple(found.corpus.values()), tuple(relevant))


def sets(cosqa_folder: Path | None) -> dict[str, Callable[[], Validation]]:
    """What is searched, by name."""
    known: dict[str, Callable[[], Validation]] = {
        "docstrings": lambda: over_library(validation_pairs()),
        "everyday": lambda: read_questions(EVERYDAY, standard_library_functions()),
        "test": lambda: over_library(hold_out(standard_library_pairs())[1]),
    }
    known |= {f"{name}-named": lambda make=make: named(make()) for name, make in known.items()}
    # Of the other sets the queries are docstrings.
    known["everyday-documented"] = lambda: documented(known["everyday"]())
    if cosqa_folder is not None:
        known["cosqa"] = lambda: cosqa(cosqa_folder)
    return known
