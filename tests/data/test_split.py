"""What is held out shares no text with what is trained on, whatever hangs together, and depends on the seed alone."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from d2llm.data import split as module
from d2llm.data.example import Example
from d2llm.data.split import split
from d2llm.errors import InputError
from d2llm.training.config import DataConfig
from d2llm.training.start import run_data

TEXTS = st.integers(0, 40).map(lambda i: f"t{i}")
ROWS = st.tuples(TEXTS, TEXTS, st.lists(TEXTS, max_size=3).map(tuple)).filter(lambda row: row[1] not in row[2])
EXAMPLES = st.lists(ROWS.map(lambda row: Example(*row)), min_size=20, max_size=60)


def texts(examples: list[Example]) -> set[str]:
    return {text for example in examples for text in (example.query, example.positive)}


@given(EXAMPLES, st.integers(0, 5))
def test_the_parts_are_disjoint_and_lose_no_example(examples: list[Example], seed: int) -> None:
    try:
        parts = split(examples, 0.2, seed)
    except InputError as error:
        assert "validation_share" in str(error)
        return
    assert len(parts.train) + len(parts.held_out) == len(examples)
    assert 1 <= len(parts.held_out) <= round(0.2 * len(examples))
    seen = texts(parts.train) | {negative for example in parts.train for negative in example.negatives}
    assert not seen & texts(parts.held_out)
    # The order of the file decides nothing but the order of the parts.
    again = split(examples[::-1], 0.2, seed)
    assert sorted(map(repr, again.held_out)) == sorted(map(repr, parts.held_out))


def test_other_seeds_hold_other_examples_out() -> None:
    examples = [Example(f"q{i}", f"p{i}") for i in range(200)]
    held = [split(examples, 0.1, seed).held_out for seed in (0, 0, 1)]
    assert held[0] == held[1] != held[2] and len(held[0]) == 20


def test_scores_leave_with_their_negatives() -> None:
    scores = ((1.0, 0.0), (0.0, 1.0), (0.0, 2.0))
    examples = [Example("q", "p", ("x", "a"), scores=scores), *(Example(f"q{i}", f"p{i}") for i in range(9))]
    parts = split([*examples, Example("x", "y")], 0.1, seed=next(s for s in range(99) if holds("x", examples, s)))
    assert parts.train[0] == Example("q", "p", ("a",), scores=(scores[0], scores[2]))


def holds(query: str, examples: list[Example], seed: int) -> bool:
    return split([*examples, Example(query, "y")], 0.1, seed).held_out[0].query == query


def test_a_part_of_each_task_is_held_out_and_no_more_than_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    examples = [Example(f"q{i}", f"p{i}", task=("asym", "asym", "sym")[i % 3]) for i in range(90)]
    assert Counter(example.task for example in split(examples, 0.1, 0).held_out) == {"asym": 6, "sym": 3}
    monkeypatch.setattr(module, "MOST_HELD_OUT", 7)
    assert Counter(example.task for example in split(examples, 0.5, 0).held_out) == {"asym": 7, "sym": 7}


def test_examples_of_two_tasks_that_share_a_text_stay_together() -> None:
    pairs = [Example(f"q{i // 2}", f"p{i}", task=("asym", "sym")[i % 2]) for i in range(40)]
    parts = split(pairs, 0.2, 0)
    assert Counter(example.task for example in parts.held_out) == {"asym": 4, "sym": 4}
    assert not texts(parts.train) & texts(parts.held_out)


def test_a_task_that_is_too_small_is_left_whole() -> None:
    examples = [Example(f"q{i}", f"p{i}", task="asym" if i else "sym") for i in range(40)]
    data = run_data(examples, DataConfig(), 0)
    assert {example.task for example in data.held_out} == {"asym"}
    assert "4 of 39 asym, 0 of 1 sym" in data.told and "too few of sym stand apart" in data.told


def test_too_few_or_one_tangle_are_refused() -> None:
    with pytest.raises(InputError, match="data.validation_share: .* of 4 out, found none in 4 groups"):
        split([Example(f"q{i}", f"p{i}") for i in range(4)], 0.1, 0)
    with pytest.raises(InputError, match="found none in 1 groups"):
        split([Example(f"q{i}", "the one passage") for i in range(50)], 0.1, 0)
