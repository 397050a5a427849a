import numpy as np
import pytest
import torch
from index_fakes import DIM, WordEncoder, corpus, head

from d2llm.errors import InputError
from d2llm.index import Index

GOOD = np.ones((3, DIM), dtype=np.float32)


def bad(value: float) -> np.ndarray:
    vectors = GOOD.copy()
    vectors[1, 5] = value
    return vectors


@pytest.mark.parametrize(
    ("passages", "options", "message"),
    [
        ([], {}, "passages: .*empty corpus"),
        (None, {}, "passages: expected texts, or None with vectors"),
        ("one text", {}, "passages: expected a sequence of texts, got one string"),
        (["a", " \n"], {}, r"passages\[1\]: expected a non-empty text, got ' \\n'"),
        (["a", 7], {}, r"passages\[1\]: expected a non-empty text, got 7"),
        ([("a", "text"), "b"], {}, r"passages\[1\]: expected a text, an \(id, text\) pair"),
        ([("a", "text"), ("a", "other")], {}, r"ids\[1\]: expected distinct ids, got 'a' a second time"),
        ([("a", "text")], {"ids": ["a"]}, "ids: expected None where passages are"),
        (["a", "b"], {"ids": ["x", "x"]}, r"ids\[1\]: expected distinct ids"),
        (["a", "b"], {"ids": ["x"]}, "ids: expected 2, one a passage, got 1"),
        (["a"], {"ids": [3]}, r"ids\[0\]: expected a non-empty string, got 3"),
        (["a", "b"], {"vectors": GOOD}, rf"vectors: expected an array \(2, {DIM}\), got shape \(3, {DIM}\)"),
        (None, {"vectors": GOOD[:, 1:]}, rf"vectors: expected an array \(N, {DIM}\), got shape \(3, {DIM - 1}\)"),
        (None, {"vectors": GOOD[0]}, "vectors: expected an array"),
        (None, {"vectors": [[1.0]]}, "vectors: expected an array .* got list"),
        (None, {"vectors": GOOD[:0]}, "empty corpus"),
        (None, {"vectors": bad(np.nan)}, r"vectors\[1\]: expected finite values"),
        (None, {"vectors": bad(-np.inf)}, r"vectors\[1\]: expected finite values"),
        (["a"], {"dtype": "int4"}, "dtype: expected one of .*int8.*, got 'int4'"),
        (["a"], {"shard_size": 0}, "shard_size: expected an integer, at least 1, got 0"),
        (["a"], {"batch_size": 1.5}, "batch_size: expected an integer"),
        (None, {"vectors": GOOD * 1e9, "dtype": "float16"}, "dtype: 'float16' cannot hold .*try 'bfloat16'"),
    ],
)
def test_build_refuses(tmp_path, passages, options, message):
    with pytest.raises(InputError, match=message):
        Index.build(WordEncoder(), passages, tmp_path / "ix", progress=False, **options)
    assert not (tmp_path / "ix" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("queries", "options", "message"),
    [
        ([], {}, "queries: expected at least one"),
        (["fine", "\t"], {}, r"queries\[1\]: expected a non-empty text"),
        ("", {}, r"queries\[0\]"),
        ("a", {"k": 0}, "k: expected an integer, at least 1, got 0"),
        ("a", {"k": True}, "k: expected an integer"),
        ("a", {"task": "both"}, "task: expected one of"),
        ("a", {"mode": "ann"}, "mode: expected one of .*, got 'ann'"),
        ("a", {"k": 10, "channels": ["bm25"], "candidates": 9}, "candidates: expected an integer, at least 10, got 9"),
        ("a", {"channels": "bm25"}, "channels: expected some of .*, got 'bm25'"),
        ("a", {"channels": ["bm25", "ann"]}, "channels: expected some of .*'ann'"),
        ("a", {"channels": ["cosine"], "mode": "bm25"}, "channels: expected none, since the mode is 'bm25'"),
    ],
)
def test_search_refuses(index, queries, options, message):
    with pytest.raises(InputError, match=message):
        index.search(queries, **options)


@pytest.mark.parametrize(
    ("queries", "options", "message"),
    [
        (GOOD[:0], {}, "queries: expected at least one"),
        (bad(np.nan), {}, r"queries\[1\]: expected finite values"),
        (GOOD[:, :4], {}, rf"queries: expected an array \(N, {DIM}\), got shape \(3, 4\)"),
        ("text", {}, "queries: expected an array .* got str"),
        (GOOD, {"mode": "bm25"}, "mode: 'bm25' needs the queries' texts"),
        (GOOD, {"channels": ["bm25"]}, "channels: 'bm25' needs the queries' texts"),
    ],
)
def test_search_vectors_refuses(index, queries, options, message):
    with pytest.raises(InputError, match=message):
        index.search_vectors(queries, **options)


def test_more_than_there_are_finds_all_that_live(index):
    index.delete(["0", "1"])
    for mode in ("hybrid", "iem", "cosine"):
        assert {hit.id for hit in index.search("red", 51, mode=mode)[0]} == {str(i) for i in range(2, 50)}
    assert len(index.search_vectors(GOOD, 51)[0]) == 48


def test_an_index_says_what_it_lacks(tmp_path, model):
    vectors = torch.randn(4, DIM)
    bare = Index.build(model, None, tmp_path / "bare", vectors=vectors, keep_vectors=False, progress=False)
    with pytest.raises(InputError, match="'cosine' needs unit vectors.*keep_vectors=False"):
        bare.search_vectors(vectors, 1, mode="cosine")
    with pytest.raises(InputError, match="'bm25' and 'hybrid' need the terms of texts, .* from vectors alone"):
        bare.search("red", 1, mode="bm25")
    with pytest.raises(InputError, match="passages: expected None, as in the rest"):
        bare.append(["a text"], progress=False)
    with pytest.raises(InputError, match="model: expected a model that encodes texts"):
        Index.open(tmp_path / "bare").search("red", 1)
    with pytest.raises(InputError, match="model: expected a D2LLM or an IEM, got str"):
        Index.build("model", ["a"], tmp_path / "other", progress=False)
    with pytest.raises(InputError, match="model: expected a model that encodes texts"):
        Index.build(head(), ["a"], tmp_path / "other", progress=False)


def test_refused_changes_leave_the_index_alone(index, model):
    for change in (
        lambda: index.append([], progress=False),
        lambda: index.append(None, vectors=np.ones((1, DIM)), progress=False),
        lambda: index.append(["new", ""], progress=False),
        lambda: index.append([("7", "taken")], progress=False),
        lambda: index.delete(["1", "absent"]),
        lambda: index.delete(["1", "1"]),
    ):
        with pytest.raises(InputError):
            change()
    assert Index.open(index.path, model, verify=True).ids() == [str(i) for i in range(50)]


def test_an_encoder_that_returns_nan_or_another_width_is_caught(tmp_path):
    class Broken(WordEncoder):
        def encode(self, texts, **options):
            return super().encode(texts, **options) * np.nan

    class Narrow(WordEncoder):
        def encode(self, texts, **options):
            return super().encode(texts, **options)[:, :3]

    with pytest.raises(InputError, match=r"encoded passages\[0\]: expected finite"):
        Index.build(Broken(), corpus(2), tmp_path / "a", progress=False)
    with pytest.raises(InputError, match="encoded passages: expected an array"):
        Index.build(Narrow(), corpus(2), tmp_path / "b", progress=False)


def test_an_id_may_hold_what_separates_names_elsewhere(model, tmp_path):
    names = ["a/b", "../a", "a:1", "a,b", "a b", "a\nb", "a\tb", "..", "*", "é", "\\"]
    index = Index.build(model, corpus(len(names)), tmp_path / "ix", ids=names, shard_size=4, progress=False)
    assert Index.open(index.path, verify=True).ids() == names
    found = index.search("red", given=[["a\nb", "../a", "*"]], mode="iem")[0]
    assert {hit.id for hit in found} == {"a\nb", "../a", "*"}
    index.append([("a/b", "another text")], upsert=True, progress=False)
    index.delete(["../a", ".."])
    assert index.ids() == [name for name in names[1:] if name not in ("../a", "..")] + ["a/b"]


def test_a_query_without_any_term_is_ranked_by_the_interaction_alone(index):
    assert index.search("?! ...", 5, mode="bm25") == [[]]
    order = [[hit.id for hit in index.search("?! ...", 5, mode=mode)[0]] for mode in ("hybrid", "iem")]
    assert order[0] == order[1]
