"""CoSQA: web queries and the Python functions that answer them."""

import os
from pathlib import Path

from d2llm.data.beir import Collection
from d2llm.errors import FormatError, MissingError
from d2llm.files import read_json

#: The functions of a folder, which tells it from a BEIR folder.
CODES = "codes.json"


def read_cosqa(folder: str | os.PathLike[str], split: str = "dev") -> Collection:
    """Read ``codes.json`` ({function: number}) and ``{split}.json`` (objects with ``query`` and ``code``, a number).

    Passages are called by their numbers, queries by their place in the file.

    Raises:
        MissingError: for an absent file; for an absent split, naming those there are.
        FormatError: for a file of another form.
    """
    folder = Path(folder)
    questions = folder / f"{split}.json"
    if not questions.is_file():
        there = sorted(file.stem for file in folder.glob("*.json") if file.name != CODES)
        raise MissingError(f"{questions}: file not found; splits there: {there}")
    codes, rows = read_json(folder / CODES), read_json(questions)
    try:
        corpus = {str(number): text for text, number in codes.items()}
        queries = {f"q{place}": row["query"] for place, row in enumerate(rows)}
        qrels = {f"q{place}": {str(row["code"]): 1} for place, row in enumerate(rows)}
    except (AttributeError, KeyError, TypeError) as error:
        raise FormatError(
            f"{questions}: expected objects with query and code, and functions by text ({error})"
        ) from None
    if unknown := [row["code"] for row in rows if str(row["code"]) not in corpus]:
        raise FormatError(f"{questions}: {len(unknown)} codes are not in {CODES}, such as {unknown[0]!r}")
    return Collection(corpus, queries, qrels)
