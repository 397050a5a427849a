"""What a part of the campaign tried, and what it found."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

#: Characters of a fault that are kept: its beginning, which names the input, and its end, which names the error.
_SHOWN = 1000


@dataclass
class Tally:
    """A row of the table: what was tried, how often, and every fault as a text that tells how to see it again."""

    what: str
    tried: int = 0
    #: Tries that the code refused with an error of its own, as it should; the others went well.
    refused: int = 0
    faults: list[str] = field(default_factory=list)

    def fault(self, text: str) -> None:
        """Keep a fault, cut in the middle."""
        half = _SHOWN // 2
        self.faults.append(text if len(text) <= _SHOWN else f"{text[:half]} ... {text[-half:]}")

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Count a try; any error is a fault."""
        self.tried += 1
        try:
            yield
        except Exception as error:
            self.fault(f"{what}: {type(error).__name__}: {error}")
