import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2llm.data.example import Example
from d2llm.errors import InputError
from d2llm.mining import mine_negatives

WORDS = ["parse", "format", "date", "time", "file", "path", "read", "write", "open", "close", "list", "sort", "merge"]


def corpus(size: int = 60, seed: int = 0) -> list[str]:
    generator = random.Random(seed)
    texts: dict[str, None] = {}
    while len(texts) < size:
        texts[" ".join(generator.choices(WORDS, k=5))] = None
    return list(texts)


def examples(passages: list[str], count: int = 20) -> list[Example]:
    return [Example(" ".join(passage.split()[:3]) + " now", passage) for passage in passages[:count]]


def vectors(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 8)).astype(np.float32)


def mine(method: str, items: list[Example], passages: list[str], **options) -> list[Example]:
    if method != "bm25":
        options |= {"query_vectors": vectors(len(items), 1), "passage_vectors": vectors(len(passages), 2)}
    return mine_negatives(items, passages, method=method, **options)


@pytest.mark.parametrize("method", ["bm25", "vectors", "both"])
def test_every_example_gets_k_distinct_negatives_without_its_positive(method):
    passages = corpus()
    items = examples(passages)
    mined = mine(method, items, passages, k=8)
    assert [(m.query, m.positive, m.task) for m in mined] == [(e.query, e.positive, e.task) for e in items]
    for example in mined:
        assert len(set(example.negatives)) == 8
        assert example.positive not in example.negatives
        assert set(example.negatives) <= set(passages)


def test_bm25_negatives_come_from_its_top():
    passages = corpus()
    for example in mine_negatives(examples(passages), passages, k=3, bm25_top=5, fill=False):
        terms = set(example.query.split())
        assert all(terms & set(negative.split()) for negative in example.negatives)


def test_vector_negatives_are_the_nearest():
    passages = corpus(30)
    items = examples(passages, 5)
    queries, texts = vectors(5, 1), vectors(30, 2)
    mined = mine("vectors", items, passages, k=4, vector_top=4)
    cosine = (queries / np.linalg.norm(queries, axis=1)[:, None]) @ (texts / np.linalg.norm(texts, axis=1)[:, None]).T
    for row, example in enumerate(mined):
        nearest = [passages[i] for i in np.argsort(-cosine[row]) if passages[i] != items[row].positive][:4]
        assert set(example.negatives) == set(nearest)


def test_both_draws_half_from_each():
    passages = corpus()
    items = examples(passages, 5)
    both = mine("both", items, passages, k=4, bm25_top=2, vector_top=2)
    lexical = mine("bm25", items, passages, k=2, bm25_top=2)
    semantic = mine("vectors", items, passages, k=2, vector_top=2)
    for example, a, b in zip(both, lexical, semantic, strict=True):
        assert set(example.negatives) >= set(a.negatives) | set(b.negatives)


@pytest.mark.parametrize("method", ["vectors", "both"])
def test_nothing_nearer_than_the_positive_less_a_margin_is_drawn(method):
    passages = corpus(40)
    items = examples(passages, 10)
    queries, texts = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (vectors(10, 1), vectors(40, 2)))
    cosine = queries @ texts.T
    mined = mine(method, items, passages, k=40, vector_top=40, margin=0.1)
    plain = mine(method, items, passages, k=40, vector_top=40)
    for row, (example, before) in enumerate(zip(mined, plain, strict=True)):
        far = {passages[i] for i in np.flatnonzero(cosine[row] <= cosine[row, row] - 0.1)}
        # Random passages, which fill up, are ruled out too.
        assert set(example.negatives) == far != set(before.negatives)
    with pytest.raises(InputError, match="corpus: expected every positive in it"):
        mine(method, items, [*passages[1:], "parse"], margin=0.1)


def test_known_positives_are_never_drawn():
    passages = ["parse a date", "parse  a   date", "parse dates well", "parse a date string", "parse date", "zebra"]
    items = [Example("parse date", passages[0]), Example("parse date", passages[2])]
    mined = mine_negatives(items, passages, k=6, positives={"parse date": ["parse a date string"]})
    # Left are neither positives, nor another spacing of one, nor the query itself.
    assert [example.negatives for example in mined] == [("zebra",), ("zebra",)]


def test_symmetric_pairs_are_positives_both_ways_round():
    items = [Example("a cat sleeps", "a cat naps", task="sym"), Example("a cat naps", "one cat naps", task="sym")]
    passages = ["a cat sleeps", "a cat naps", "one cat naps", "a cat runs"]
    mined = mine_negatives(items, passages, k=3)
    assert set(mined[0].negatives) == {"one cat naps", "a cat runs"}
    assert set(mined[1].negatives) == {"a cat runs"}


@settings(max_examples=20, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(0, 5))
def test_the_draw_depends_on_the_seed_and_not_on_the_order(generator, seed):
    passages = corpus(30)
    items = examples(passages, 8)
    expected = {m.query: m.negatives for m in mine_negatives(items, passages, k=3, seed=seed)}
    shuffled = list(items)
    generator.shuffle(shuffled)
    assert {m.query: m.negatives for m in mine_negatives(shuffled, passages, k=3, seed=seed)} == expected
    assert mine_negatives(items[:1], passages, k=3, seed=seed + 1)[0].negatives != () != expected[items[0].query]


def test_another_seed_draws_others():
    passages = corpus()
    items = examples(passages)
    assert mine_negatives(items, passages, k=3, seed=0) != mine_negatives(items, passages, k=3, seed=1)


def test_too_few_candidates_are_filled_with_random_passages_or_left():
    passages = ["alpha beta", "gamma delta", "epsilon zeta", "eta theta"]
    item = [Example("alpha", "alpha beta")]
    assert mine_negatives(item, passages, k=2, fill=False)[0].negatives == ()
    filled = mine_negatives(item, passages, k=2)[0].negatives
    assert len(set(filled)) == 2
    assert set(filled) <= set(passages[1:])
    assert len(mine_negatives(item, passages, k=99)[0].negatives) == 3


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("method", {"method": "random"}),
        ("margin", {"margin": 0.1}),
        ("k", {"k": 0}),
        ("bm25_top", {"bm25_top": 0}),
        ("corpus", {"corpus": []}),
        (r"corpus\[1\]", {"corpus": ["a", " "]}),
        ("query_vectors", {"method": "vectors"}),
        ("query_vectors", {"method": "both", "query_vectors": np.zeros((3, 2)), "passage_vectors": np.zeros((2, 2))}),
        ("passage_vectors", {"method": "both", "query_vectors": np.zeros((1, 3)), "passage_vectors": np.zeros((2, 2))}),
        ("query_vectors", {"method": "both", "query_vectors": [[np.nan]], "passage_vectors": [[1.0], [1.0]]}),
    ],
)
def test_errors_name_the_argument(name, change):
    with pytest.raises(InputError, match=f"^{name}: "):
        mine_negatives(**({"examples": [Example("q", "a")], "corpus": ["a", "b"]} | change))
