"""A passage that is known to be relevant to a query is never its negative, wherever in the data that is known from."""

import numpy as np
import pytest

from d2llm.data.example import Example
from d2llm.data.positives import KnownPositives
from d2llm.errors import InputError

EXAMPLES = [
    Example("q1", "a"),
    Example("q1", "b  c"),
    Example("q2", "a"),
    Example("s1", "s2", task="sym"),
    Example("s3", "s1", task="sym"),
    Example("q3", "s3"),
]


def test_positives_of_the_whole_data_set_are_masked() -> None:
    # A batch of two, whose second passage answers the first query by an example that is not among them.
    queries, passages = ["q2", "q1"], ["z", "b c"]
    assert not KnownPositives([]).mask(queries, passages).any()
    assert KnownPositives([*EXAMPLES, Example("q2", "b c")]).mask(queries, passages).tolist() == [[0, 1], [0, 0]]


def test_a_pair_of_the_symmetric_task_counts_either_way_round() -> None:
    queries, passages = ["s2", "s1", "s3"], ["s1", "s3", "s2"]
    # s1 goes with s2 and s3, and each with itself; that s2 goes with s3 is not known.
    expected = np.array([[0, 0, 1], [1, 0, 1], [1, 1, 0]], dtype=bool)
    np.testing.assert_array_equal(KnownPositives(EXAMPLES).mask(queries, passages), expected)
    assert not KnownPositives(EXAMPLES).mask(["s3", "x"], ["y", "q3"]).any(), "q3 is asymmetric"


def test_the_same_passage_again_is_masked_and_the_own_one_is_not() -> None:
    mask = KnownPositives(EXAMPLES).mask(["q1", "q2", "q1"], ["a", "a", "b c"])
    assert mask.tolist() == [[0, 1, 1], [1, 0, 0], [1, 1, 0]]


def test_false_and_repeated_negatives_are_dropped_with_their_scores() -> None:
    negatives = ("x", "b c", "y", "x ", "q1")
    scores = tuple((float(k), 0.0) for k in range(6))
    known = KnownPositives(EXAMPLES, {"q1": ["y"]})
    assert known.clean(Example("q1", "a", negatives, scores=scores)) == Example("q1", "a", ("x",), scores=scores[:2])
    assert known.clean(Example("q2", "a", negatives)).negatives == ("x", "b c", "y", "q1")


def test_as_many_passages_as_queries() -> None:
    with pytest.raises(InputError, match="passages: expected 2, one a query, got 1"):
        KnownPositives([]).mask(["a", "b"], ["c"])
