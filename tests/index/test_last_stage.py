"""A teacher as the last stage: what it may change of a search, and what it may not."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from d2llm.errors import InputError
from d2llm.index.hits import Hit
from d2llm.last_stage import reorder


class Lengths:
    """Judges a passage by its length alone: log-odds of one a character."""

    def header(self) -> dict[str, object]:
        return {}

    def judge(self, queries: Sequence[str], passages: Sequence[str], task: str) -> tuple[np.ndarray, None]:
        assert len(queries) == len(passages) and task == "asym"
        yes = np.array([len(passage) for passage in passages], np.float32)
        return np.stack([yes, np.zeros_like(yes)], axis=1), None


def found(*passages: tuple[float, str | None], explained: bool = False) -> list[Hit]:
    ranks = {"ranks": {"iem": 1}, "scores": {"iem": 0.5}} if explained else {}
    return [Hit(row + 1, f"d{row}", score, text, **ranks) for row, (score, text) in enumerate(passages)]


def test_both_judgements_decide_and_what_is_not_judged_follows() -> None:
    # In standard deviations the search says 1.2, 0, -1.2 and the teacher -0.8, -0.6, 1.4: in all 0.4, -0.6, 0.2.
    hits = found((3, "a"), (2, "bb"), (1, "ccccccccc"), (0.5, "d" * 50), explained=True)
    (ordered,) = reorder(Lengths(), ["q"], [hits], count=3)
    assert [hit.id for hit in ordered] == ["d0", "d2", "d1", "d3"]
    assert [hit.rank for hit in ordered] == [1, 2, 3, 4]
    assert ordered[1].score == 1 and ordered[1].ranks == {"iem": 1, "search": 3, "teacher": 1}
    assert ordered[1].scores == {"iem": 0.5, "teacher": 9}
    assert ordered[3] == hits[3]


@given(st.lists(st.lists(st.tuples(st.floats(-9, 9, width=32), st.text("ab", min_size=1)), max_size=6), max_size=4))
def test_a_query_keeps_its_passages_whatever_the_others_found(rows: list[list[tuple[float, str]]]) -> None:
    hits = [found(*sorted(row, reverse=True)) for row in rows]
    together = reorder(Lengths(), ["q"] * len(rows), hits, count=4)
    assert together == [reorder(Lengths(), ["q"], [each], count=4)[0] for each in hits]
    for before, after in zip(hits, together, strict=True):
        assert sorted(hit.id for hit in after) == sorted(hit.id for hit in before)
        assert [hit.rank for hit in after] == list(range(1, len(after) + 1))


def test_what_cannot_be_judged_is_refused() -> None:
    with pytest.raises(InputError, match="hits: expected 2 lists, one a query, got 1"):
        reorder(Lengths(), ["q", "r"], [[]])
    with pytest.raises(InputError, match="count: expected at least 1, got 0"):
        reorder(Lengths(), ["q"], [[]], count=0)
    with pytest.raises(InputError, match="built without texts"):
        reorder(Lengths(), ["q"], [found((1, None))])
