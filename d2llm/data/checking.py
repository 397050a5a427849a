"""What a file of examples holds, counted in one pass that keeps 8 bytes an example."""

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from d2llm.data.example import Example


@dataclass
class Lengths:
    """Characters of the texts of a kind."""

    texts: int = 0
    total: int = 0
    longest: int = 0

    def add(self, text: str) -> None:
        """Count a text."""
        self.texts += 1
        self.total += len(text)
        self.longest = max(self.longest, len(text))

    def __str__(self) -> str:
        mean = self.total / self.texts if self.texts else 0
        return f"{self.texts:,}, {mean:.0f} characters on average, {self.longest:,} at most"


@dataclass
class Counts:
    """What was counted."""

    examples: int = 0
    #: Examples whose query and positive stand before.
    repeated: int = 0
    tasks: Counter[str] = field(default_factory=Counter)
    #: Examples that carry scores, and those that have no negatives.
    scored: int = 0
    without_negatives: int = 0
    queries: Lengths = field(default_factory=Lengths)
    positives: Lengths = field(default_factory=Lengths)
    negatives: Lengths = field(default_factory=Lengths)

    def __str__(self) -> str:
        tasks = ", ".join(f"{count:,} {task}" for task, count in sorted(self.tasks.items()))
        rows = [
            ("examples", f"{self.examples:,} ({tasks}), {self.repeated:,} of them stand before"),
            ("queries", str(self.queries)),
            ("positives", str(self.positives)),
            ("negatives", f"{self.negatives}; {self.without_negatives:,} examples have none"),
            ("scores", f"of {self.scored:,} examples"),
        ]
        return "\n".join(f"{name + ':':<10} {text}" for name, text in rows)


def count(examples: Iterable[Example]) -> Counts:
    """Count examples as they come; none is kept."""
    found = Counts()
    pairs = array("Q")
    for example in examples:
        found.tasks[example.task] += 1
        found.scored += example.scores is not None
        found.without_negatives += not example.negatives
        found.queries.add(example.query)
        found.positives.add(example.positive)
        for negative in example.negatives:
            found.negatives.add(negative)
        pair = f"{example.query}\0{example.positive}".encode()
        pairs.append(int.from_bytes(hashlib.blake2b(pair, digest_size=8).digest(), "big"))
    found.examples = len(pairs)
    ordered = np.sort(np.frombuffer(pairs, np.uint64)) if pairs else np.empty(0, np.uint64)
    found.repeated = int((ordered[1:] == ordered[:-1]).sum())
    return found
