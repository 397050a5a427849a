"""Held-out queries and their mean reciprocal rank, ties included."""

import numpy as np
import pytest

from d2llm.data.example import Example
from d2llm.data.validation import Validation
from d2llm.errors import InputError


def test_mean_reciprocal_rank() -> None:
    validation = Validation(("a", "b", "c"), ("p", "q", "r"), (frozenset({0}), frozenset({2, 1}), frozenset({2})))
    scores = np.array([[3.0, 2, 1], [3, 2, 1], [1, 1, 1]])
    assert validation.mean_reciprocal_rank(scores) == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    with pytest.raises(InputError, match="without NaN"):
        validation.mean_reciprocal_rank(np.full((3, 3), np.nan))


def test_from_examples_joins_the_positives_of_a_query() -> None:
    made = Validation.from_examples([Example("q", "p1", ("n",)), Example("q", "p2"), Example("r", "n")])
    assert made.queries == ("q", "r") and made.passages == ("p1", "n", "p2")
    assert made.relevant == (frozenset({0, 2}), frozenset({1}))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((("q",), ("p",), (frozenset(),)), r"relevant\[0\]"),
        ((("q",), ("p",), (frozenset({1}),)), r"relevant\[0\]"),
        ((("q",), ("p",), ()), "relevant: expected 1"),
        ((("",), ("p",), (frozenset({0}),)), r"queries\[0\]"),
        ((("q",), ("p",), (frozenset({0}),), "both"), "task"),
    ],
)
def test_bad_validation_is_named(arguments: tuple, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Validation(*arguments)


def test_each_task_has_its_own() -> None:
    by_task = Validation.by_task([Example("q", "p"), Example("q", "r", task="sym"), Example("s", "t")])
    assert {task: made.passages for task, made in by_task.items()} == {"asym": ("p", "t"), "sym": ("r",)}
    assert all(made.task == task for task, made in by_task.items())
    with pytest.raises(InputError, match="at least one, got none"):
        Validation.by_task([])


def test_two_tasks_do_not_share_one_figure() -> None:
    with pytest.raises(InputError, match="one task"):
        Validation.from_examples([Example("q", "p"), Example("q", "p", task="sym")])
