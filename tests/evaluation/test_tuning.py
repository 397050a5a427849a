"""Ways to search, measured on judged queries, and the one that is chosen and kept."""

import json
import shutil
from pathlib import Path

import pytest

from d2llm.errors import InputError
from d2llm.evaluation.tuning import Way, tune_search
from d2llm.index import Index
from tests.index.index_fakes import WordEncoder, corpus


@pytest.fixture(name="index")
def fixture_index(tmp_path: Path) -> Index:
    return Index.build(WordEncoder(), corpus(150), tmp_path / "ix", shard_size=60, dtype="float32", progress=False)


def test_the_fastest_of_the_best_is_chosen_and_its_weight_kept(index, monkeypatch):
    queries = {f"q{i}": f"item{i} unheard" for i in range(12)} | {"unjudged": "red"}
    qrels = {f"q{i}": {str(i): 1} for i in range(12)} | {"absent": {"3": 1}}
    tuned = tune_search(index, queries, qrels, k=5, metric="mrr", progress=False)
    assert {way.mode for way in tuned.measured} == {"bm25", "cosine", "iem", "hybrid"}
    assert {way.channels for way in tuned.measured} == {(), ("bm25",), ("cosine",), ("bm25", "cosine")}
    assert {way.candidates for way in tuned.measured} == {0, 100}
    best = max(values["mrr"] for values in tuned.measured.values())
    assert tuned.measured[Way("bm25")]["mrr"] == best == 1.0
    good = {way: values["search_ms"] for way, values in tuned.measured.items() if values["mrr"] >= best - 0.01}
    assert good[tuned.chosen] == min(good.values())
    assert "search_ms" in tuned.table().to_text() and json.dumps(tuned.table().to_dict())
    with pytest.raises(InputError, match="queries: expected one at least that has a relevant passage"):
        tune_search(index, {"other": "x"}, qrels, progress=False)


def test_an_index_keeps_a_weight(index, tmp_path):
    assert index.bm25_weight == 0.2
    before, strong = index.search("red item7", 9), index.search("red item7", 9, bm25_weight=5)
    vectors = index.encode_queries(["red item7"])
    assert before != strong == index.search("red item7", 9, bm25_weight=5, vectors=vectors)
    index.keep_bm25_weight(5)
    index.append(["one more"], progress=False)
    index.compact()
    shutil.copytree(index.path, tmp_path / "copy")
    again = Index.open(tmp_path / "copy", WordEncoder(), verify=True)
    assert again.bm25_weight == 5 and [hit.id for hit in again.search("red item7", 9)[0]] == [h.id for h in strong[0]]
    for weight in (-1, float("nan"), "x", True):
        with pytest.raises(InputError, match="bm25_weight: expected a finite number of at least 0"):
            index.keep_bm25_weight(weight)
    with pytest.raises(InputError, match="vectors: expected 2, one a query, got 1"):
        index.search(["a", "b"], vectors=vectors)
