import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2llm.bm25 import BM25, tokenize, top_indices
from d2llm.data.docstrings import docstring_pairs
from d2llm.errors import InputError
from d2llm.evaluation import ir_metrics


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Parse a date.", ["parse", "a", "date"]),
        ("parse_HTTPHeader2", ["parse_httpheader2", "parse", "http", "header", "2"]),
        ("getValue", ["getvalue", "get", "value"]),
        ("__init__", ["init"]),
        ("HTTP", ["http"]),
        ("ISO8601", ["iso8601", "iso", "8601"]),
        ("机器学习", ["机", "器", "学", "习", "机器", "器学", "学习"]),
        ("用BM25检索", ["用", "bm25", "bm", "25", "检", "索", "检索"]),
        ("ＡＢＣ café STRASSE Straße", ["abc", "café", "strasse", "strasse"]),
        ("_ -- ...", []),
    ],
)
def test_tokenize(text, tokens):
    assert tokenize(text) == tokens


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_every_token_is_a_piece_of_the_text(text):
    folded = unicodedata.normalize("NFKC", text).casefold()
    assert all(token and token in folded for token in tokenize(text))


@given(st.from_regex(r"[a-z]+", fullmatch=True))
def test_words_in_capitals_are_the_same_words(word):
    assert tokenize(word.upper()) == tokenize(word) == [word]


def test_search_is_best_first_and_the_lower_index_wins_ties():
    bm25 = BM25(["a dog", "the cat sat", "", "the cat sat", "cat cat cat"])
    scores, indices = bm25.search(["cat", "unknown"], 4)
    assert indices.tolist() == [[4, 1, 3, 0], [0, 1, 2, 3]]
    assert scores.dtype == np.float32
    assert indices.dtype == np.int64
    assert scores[0, 1] == scores[0, 2] > scores[0, 3] == 0
    assert (scores[1] == 0).all()


def test_chinese_finds_the_passage_with_the_word():
    _, indices = BM25(["今天天气很好", "机器学习与深度学习", "学生在家练习"]).search(["什么是机器学习"], 1)
    assert indices.tolist() == [[1]]


def test_scores_are_okapi_bm25_with_lucene_idf():
    passages = ["apple banana apple", "banana cherry", "cherry date elder fig"]
    length = np.array([3, 2, 4])
    frequency = np.array([2, 0, 0])
    idf = np.log(1 + (3 - 1 + 0.5) / (1 + 0.5))
    expected = idf * frequency / (frequency + 1.5 * (1 - 0.75 + 0.75 * length / length.mean()))
    np.testing.assert_allclose(BM25(passages).scores(["apple"])[0], expected, rtol=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.data())
def test_top_indices_is_a_stable_sort(values, data):
    scores = np.array(values, dtype=np.float32)
    k = data.draw(st.integers(1, len(values)))
    assert top_indices(scores, k).tolist() == np.argsort(-scores, kind="stable")[:k].tolist()


def test_scores_do_not_depend_on_the_process():
    program = (
        "from d2llm.bm25 import BM25\n"
        "print(BM25(['parse the date', 'format a date', 'the_parser']).scores(['parse date the']).tobytes().hex())"
    )
    environments = [os.environ | {"PYTHONHASHSEED": seed} for seed in ("1", "2")]
    first, second = (
        subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True).stdout
        for env in environments
    )
    assert first == second


def test_passages_without_any_term_score_zero():
    bm25 = BM25(["...", "!!!"])
    assert (bm25.scores(["a", "..."]) == 0).all()
    assert bm25.scores([]).shape == (0, 2)


def test_splitting_identifiers_finds_code_by_its_description():
    library = Path(os.__file__).parent
    pairs = [
        pair for folder in ("asyncio", "email", "importlib", "logging") for pair in docstring_pairs(library / folder)
    ]
    queries, passages = [pair.query for pair in pairs], [pair.positive for pair in pairs]
    assert len(pairs) > 300
    # Lower case without underscores leaves nothing to split.
    whole = [text.lower().replace("_", "") for text in passages]
    found, found_whole = (ir_metrics(BM25(texts).scores(queries))["mrr"] for texts in (passages, whole))
    assert found > 0.4
    assert found > found_whole + 0.05


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("passages", lambda: BM25([])),
        ("passages", lambda: BM25("text")),
        (r"passages\[1\]", lambda: BM25(["a", None])),
        ("k", lambda: BM25(["a"]).search(["a"], 2)),
        ("k", lambda: BM25(["a"]).search(["a"], 0)),
        ("queries", lambda: BM25(["a"]).scores("a")),
        (r"queries\[0\]", lambda: BM25(["a"]).scores([1])),
    ],
)
def test_errors_name_the_argument(name, call):
    with pytest.raises(InputError, match=f"^{name}: expected"):
        call()


def test_scores_do_not_depend_on_how_many_passages_are_sorted_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    passages, queries = ["open the file", "close a file", "the file of the file", "", "x"], ["the file", "close x"]
    whole = BM25(passages).scores(queries)
    monkeypatch.setattr("d2llm.bm25._AT_ONCE", 2)
    np.testing.assert_array_equal(BM25(passages).scores(queries), whole)
