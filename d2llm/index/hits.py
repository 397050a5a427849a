"""What a search returns."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from d2llm.index.searching import Found
from d2llm.index.snapshot import Snapshot
from d2llm.metadata import Metadata


@dataclass(frozen=True)
class Hit:
    """One passage found: its rank from 1, id, score by the mode of the search (higher is better), text if there is one,
    and metadata.

    With ``explain``, ``ranks``: its rank from 1 by each measure that found it; ``promised``: the share of the exact
    best that the search was to find, 1 where every passage was scored, None where nothing was promised.
    """

    rank: int
    id: str
    score: float
    text: str | None
    ranks: dict[str, int] | None = None
    promised: float | None = None
    metadata: Metadata = field(default_factory=dict)


def look_up(snapshot: Snapshot, found: Sequence[Found], promised: float | None, explain: bool) -> list[list[Hit]]:
    """The passages that were found, query by query."""
    hits: list[list[Hit]] = []
    for each in found:
        hits.append([])
        for row, (score, position) in enumerate(zip(each.scores.tolist(), each.positions.tolist(), strict=True)):
            name, text, metadata = snapshot.passage(position)
            ranks = {measure: int(of[row]) for measure, of in each.ranks.items() if of[row]} if explain else None
            hits[-1].append(Hit(row + 1, name, score, text, ranks, promised if explain else None, metadata))
    return hits
