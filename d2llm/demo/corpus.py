"""What a student on an encoder learns from: functions of many packages, each asked for in several ways."""

import random
from collections.abc import Iterable
from pathlib import Path

from d2llm.cache import cache_folder
from d2llm.data.docstrings import Function, functions, hold_out, standard_library_functions, standard_library_pairs
from d2llm.data.example import Example, text_key
from d2llm.data.jsonl import read_examples, write_examples
from d2llm.data.packages import fetch_packages
from d2llm.data.questions import read_questions
from d2llm.demo.packages import FUNCTIONS_A_PACKAGE, PACKAGES
from d2llm.tasks import ASYM

#: Of the pairs that no table reports on, those by which settings are chosen: a shuffle of its own.
VALIDATION, VALIDATION_SEED = 500, 1
#: Questions in everyday words, for the same end; they lie with the tests.
EVERYDAY = Path(__file__).parents[2] / "tests" / "data" / "everyday.jsonl"


def validation_pairs() -> list[Example]:
    """Pairs of the standard library to choose settings by, none of them among those that a demonstration holds out."""
    rest, _ = hold_out(standard_library_pairs())
    return hold_out(rest, VALIDATION, VALIDATION_SEED)[1]


def training_examples() -> list[Example]:
    """An example for every query of every function, none with a text of validation or test."""
    library = standard_library_functions()
    unseen = unseen_texts(library)
    folders, absent = fetch_packages(PACKAGES, cache_folder() / "packages")
    print(f"packages: {len(folders)} of {len(PACKAGES)}" + (f", without {', '.join(absent)}" if absent else ""))
    chosen = [list(library), *(_some(list(functions(folder)), folder.name) for folder in folders)]
    examples = _examples((function for some in chosen for function in some), unseen)
    print(f"training examples: {len(examples)}")
    return examples


def kept_examples(file: Path) -> list[Example]:
    """The training examples as a file has them, written at first."""
    if not file.exists():
        write_examples(file, training_examples())
    return read_examples(file)


def unseen_texts(library: list[Function]) -> set[int]:
    """Keys of the texts of validation and test; the functions that answer everyday questions are among them."""
    _, test = hold_out(standard_library_pairs())
    questions = read_questions(EVERYDAY, library)
    answers = [questions.passages[row] for rows in questions.relevant for row in rows]
    held_out = [*test, *validation_pairs()]
    texts = [*questions.queries, *answers, *(text for pair in held_out for text in (pair.query, pair.positive))]
    return {text_key(text) for text in texts}


def _some(found: list[Function], name: str) -> list[Function]:
    if len(found) <= FUNCTIONS_A_PACKAGE:
        return found
    return random.Random(name).sample(found, FUNCTIONS_A_PACKAGE)


def _examples(found: Iterable[Function], unseen: set[int]) -> list[Example]:
    examples: dict[Example, None] = {}
    for function in found:
        if text_key(function.code) in unseen:
            continue
        for query in function.queries():
            if text_key(query) not in unseen:
                examples[Example(query, function.code, task=ASYM)] = None
    return list(examples)
