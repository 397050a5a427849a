"""One training example: a query, its positive passage and its hard negatives."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from d2llm.errors import InputError, shown
from d2llm.tasks import ASYM, TASKS
from d2llm.texts import check_text, check_texts


def text_id(text: str) -> str:
    """Identifier of a text by its content: 16 hex digits of SHA-256.

    Teacher scores are keyed by (query id, passage id), so they stay valid when data is
    reshuffled, filtered or made again on another machine.
    """
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def text_key(text: str) -> int:
    """Identifier of a text up to its white space: the first 64 bits of SHA-256."""
    return int.from_bytes(hashlib.sha256(" ".join(text.split()).encode()).digest()[:8], "big")


@dataclass(frozen=True)
class Example:
    """A query with its positive passage, its hard negatives and its task.

    Raises:
        InputError: for an empty or whitespace text, a positive that is a negative too, or an unknown task.
    """

    query: str
    positive: str
    negatives: tuple[str, ...] = ()
    task: str = ASYM
    #: Raw teacher logits (yes, no) over [positive, *negatives], when the file carried them.
    scores: tuple[tuple[float, float], ...] | None = None
    #: Line of the file that it was read from, for messages.
    line: int | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise InputError(f"task: expected one of {TASKS}, got {shown(self.task)}")
        check_text(self.query, "query")
        check_text(self.positive, "positive")
        check_texts(self.negatives, "negatives", none=True)
        if self.positive in self.negatives:
            raise InputError(
                f"negatives[{self.negatives.index(self.positive)}]: expected other passages than the positive, got it "
                f"again; leave it out: {self.positive[:200]!r}"
            )
        if self.scores is not None and len(self.scores) != 1 + len(self.negatives):
            raise InputError(
                f"scores: expected {len(self.passages)} rows (the positive and every negative), got {len(self.scores)}"
            )

    @property
    def passages(self) -> tuple[str, ...]:
        """[positive, *negatives]: index 0 is the positive, as in every loss."""
        return (self.positive, *self.negatives)

    def with_negatives(self, kept: Sequence[int]) -> "Example":
        """The example with those of its hard negatives alone, by index and in that order, scores with them."""
        scores = self.scores and (self.scores[0], *(self.scores[1 + i] for i in kept))
        return replace(self, negatives=tuple(self.negatives[i] for i in kept), scores=scores)
