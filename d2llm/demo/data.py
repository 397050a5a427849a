"""What the demonstration learns from and is measured on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from d2llm.data.docstrings import hold_out, standard_library_pairs
from d2llm.data.example import Example
from d2llm.data.jsonl import read_examples
from d2llm.data.validation import Validation
from d2llm.demo.recipe import SCORED_NEGATIVES
from d2llm.errors import InputError
from d2llm.mining import mine_negatives

#: Share of a user's own examples that is held out.
_HELD_OUT_SHARE = 0.1


@dataclass(frozen=True)
class DemoData:
    """Training examples, the held-out queries with their candidates, and every passage there is."""

    train: list[Example]
    held_out: Validation
    library: list[str]

    def mined(self, count: int) -> list[Example]:
        """The training examples, the first ``count`` with hard negatives from the training passages."""
        passages = list(dict.fromkeys(example.positive for example in self.train))
        known: dict[str, set[str]] = {}
        for example in self.train:
            known.setdefault(example.query, set()).add(example.positive)
        mined = mine_negatives(self.train[:count], passages, SCORED_NEGATIVES, positives=known)
        return [*mined, *self.train[count:]]


def load_data(file: Path | None = None) -> DemoData:
    """The standard library's pairs, or the examples of a JSONL file (one task, a tenth of them held out).

    Raises:
        InputError: for a file with too few examples.
    """
    if file is None:
        return _demo_data(standard_library_pairs(), None)
    examples = read_examples(file)
    held_out = int(len(examples) * _HELD_OUT_SHARE)
    if held_out < 1:
        raise InputError(f"data: expected at least {int(1 / _HELD_OUT_SHARE)} examples in {file}, got {len(examples)}")
    return _demo_data(examples, held_out)


def _demo_data(pairs: Sequence[Example], held_out: int | None) -> DemoData:
    train, held = hold_out(list(pairs)) if held_out is None else hold_out(list(pairs), held_out)
    library = list(dict.fromkeys(pair.positive for pair in pairs))
    return DemoData(train, Validation.from_examples(held), library)
