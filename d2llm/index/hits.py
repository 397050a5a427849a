"""What a search returns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from d2llm.index.searching import Found, Scores
from d2llm.index.snapshot import Snapshot
from d2llm.metadata import Metadata


@dataclass(frozen=True)
class Hit:
    """One passage found: its rank from 1, id, score by the mode of the search (higher is better), text if there is one,
    and metadata.

    With ``explain``, ``ranks``: its rank from 1 by each measure that found it; ``scores``: its score by every measure
    that can be had of it ("iem" as a logit; "surrogate" in numbers of no scale); ``promised``: the share of the exact
    best that the search was to find, 1 where every passage was scored, None where nothing was promised.
    """

    rank: int
    id: str
    score: float
    text: str | None
    ranks: dict[str, int] | None = None
    promised: float | None = None
    metadata: Metadata = field(default_factory=dict)
    scores: dict[str, float] | None = None


def look_up(
    snapshot: Snapshot,
    found: Sequence[Found],
    promised: float | None,
    measured: Sequence[Mapping[str, Scores]] | None = None,
) -> list[list[Hit]]:
    """The passages that were found, query by query; explained where every measure's scores (n,) are given."""
    hits: list[list[Hit]] = []
    for number, each in enumerate(found):
        hits.append([])
        for row, (score, position) in enumerate(zip(each.scores.tolist(), each.positions.tolist(), strict=True)):
            name, text, metadata = snapshot.passage(position)
            hit = Hit(row + 1, name, score, text, metadata=metadata)
            if measured is not None:
                ranks = {measure: int(of[row]) for measure, of in each.ranks.items() if of[row]}
                scores = {measure: float(of[row]) for measure, of in measured[number].items()}
                hit = replace(hit, ranks=ranks, promised=promised, scores=scores)
            hits[-1].append(hit)
    return hits
