"""BM25 on the disk and what it gives beside the interaction module; indices from before it was there."""

import json

import numpy as np
import pytest
import torch
from index_fakes import WordEncoder, corpus
from safetensors.torch import load_file, save_file

from d2llm.bm25 import BM25
from d2llm.errors import FormatError, InputError
from d2llm.files import json_text, read_json, write_json
from d2llm.fusion import fuse
from d2llm.index import Index, segment, snapshot
from d2llm.index.manifest import _digest
from d2llm.index.records import FileRecord

QUERIES = ["red item7", "old new", "slow fast item40", "unknown words"]


def expected(model: WordEncoder, texts: list[str], weight: float = 0.2) -> np.ndarray:
    """The scores of QUERIES, by the formula and without an index."""
    with torch.no_grad():
        q, p = (
            torch.from_numpy(model.encode(t, kind="query", batch_size=1, show_progress=False)) for t in (QUERIES, texts)
        )
        return fuse(model.iem.score_all(q, p, 1).numpy(), BM25(texts).scores(QUERIES), weight)


def older(index: Index) -> Index:
    """The index as version 1 of the format wrote it: no file for looking up."""
    body = read_json(index.path / "manifest.json")
    for part in body["segments"]:
        part["files"].pop()
        (index.path / "segments" / part["name"] / "lookup.safetensors").unlink()
        (index.path / "segments" / part["name"] / "segment.json").write_text(json_text(part))
    for name in ("sha256", "lookup"):
        body.pop(name)
    body["version"] = 1
    write_json(index.path / "manifest.json", {**body, "sha256": _digest(body)})
    return Index.open(index.path, WordEncoder(), verify=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_hybrid_is_the_default_and_is_its_formula(model, tmp_path, dtype):
    texts = corpus(50)
    index = Index.build(model, texts, tmp_path / "ix", shard_size=16, dtype=dtype, progress=False)
    scores = expected(model, texts)
    for row, hits in zip(scores, index.search(QUERIES, 50), strict=True):
        found = np.array([hit.score for hit in sorted(hits, key=lambda hit: int(hit.id))])
        np.testing.assert_allclose(found, row, atol=1e-4 if dtype == "float32" else 0.1)
        assert [hit.score for hit in hits] == sorted(found, reverse=True)
    assert index.search(QUERIES, 7) == [hits[:7] for hits in index.search(QUERIES, 50)]


def test_the_students_weight_counts(index):
    index._model.config = type("Config", (), {"bm25_weight": 3.0})()
    row = expected(index._model, corpus(50), 3.0)[0]
    np.testing.assert_allclose([hit.score for hit in index.search(QUERIES[0], 5)[0]], np.sort(row)[::-1][:5], atol=1e-4)


def test_deleted_passages_do_not_count_among_terms(model, index):
    index.delete(["7", "3"])
    texts = [text for i, text in enumerate(corpus(50)) if i not in (3, 7)]
    (hits,) = index.search(QUERIES[0], 48)
    np.testing.assert_allclose([h.score for h in hits], np.sort(expected(model, texts)[0])[::-1], atol=1e-4)


def test_a_query_without_any_known_word_ranks_by_interaction_alone(index):
    by_both, by_iem = (index.search("zzz ...", 50, mode=mode)[0] for mode in ("hybrid", "iem"))
    assert [hit.id for hit in by_both] == [hit.id for hit in by_iem]
    assert index.search("zzz ...", 50, mode="bm25") == [[]]
    assert index.search("zzz ...", 5, channels=["bm25"]) == [[]]


def test_explained_hits_name_their_ranks_by_both(index):
    (hits,) = index.search("red item21", 5, explain=True)
    by = {mode: {hit.id: hit.rank for hit in index.search("red item21", 50, mode=mode)[0]} for mode in ("iem", "bm25")}
    assert all(("bm25" in hit.ranks) == (hit.id in by["bm25"]) for hit in hits)
    for hit in hits:
        assert hit.ranks["iem"] == by["iem"][hit.id]
        # Passages of equal scores share a rank.
        assert hit.ranks.get("bm25", 99) <= by["bm25"].get(hit.id, 99)


@pytest.mark.parametrize("mode", ["hybrid", "iem", "bm25", "cosine"])
def test_explained_hits_have_their_scores_by_every_measure(index, mode):
    (hits,) = index.search("red item21", 5, mode=mode, explain=True)
    wanted = {"bm25"} if mode == "bm25" else {"bm25", "iem", "cosine"}
    for measure in wanted:
        alone = {hit.id: hit.score for hit in index.search("red item21", 50, mode=measure)[0]}
        found = [hit.scores[measure] for hit in hits]
        assert found == pytest.approx([alone.get(hit.id, 0) for hit in hits], rel=1e-3, abs=1e-3)
    assert all(hit.scores.keys() == wanted for hit in hits)


def test_no_text_is_read_to_search_by_words(index, monkeypatch):
    again = Index.open(index.path, index._model)

    def refuse(*arguments):
        raise AssertionError

    monkeypatch.setattr(segment.Segment, "passages", refuse)
    monkeypatch.setattr(segment, "tokenize", refuse)
    assert again.search("red item21", 1, mode="bm25")[0][0].text == corpus(50)[21]
    again.delete("21")
    assert len(again) == 49


def test_ids_that_share_a_key_are_told_apart(index, monkeypatch):
    monkeypatch.setattr(snapshot, "keys_of", lambda names: index._snapshot.segments[0].keys[5:6])
    assert index._snapshot.find(["nothing"]) == {} and index._snapshot.find(["5"]) == {"5": 5}


def test_an_older_index_is_searched_without_words_and_says_what_to_do(index):
    index.delete("3")
    old = older(index)
    assert old.search(QUERIES, 9) == index.search(QUERIES, 9, mode="iem")
    for options in ({"mode": "bm25"}, {"mode": "hybrid"}, {"channels": ["bm25"]}):
        with pytest.raises(InputError, match="by an older version; build it again"):
            old.search("red", **options)
    old.append(["a new one"], progress=False)
    old.delete("4")
    again = Index.open(old.path, old._model, verify=True)
    assert len(again) == 49 and not list(old.path.glob("segments/*/lookup*"))
    assert json.loads((old.path / "manifest.json").read_text())["version"] == 4


@pytest.mark.parametrize("name", ["keys", "terms", "starts", "rows", "counts", "lengths"])
def test_a_lookup_file_of_other_tensors_is_refused_at_open(index, name):
    body = read_json(index.path / "manifest.json")
    part = body["segments"][1]
    path = index.path / "segments" / part["name"] / "lookup.safetensors"
    tensors = load_file(path)
    tensors[name] = tensors[name][1:].clone()
    save_file(tensors, path)
    part["files"][2] = vars(FileRecord.of(path))
    path.with_name("segment.json").write_text(json_text(part))
    body.pop("sha256")
    write_json(index.path / "manifest.json", {**body, "sha256": _digest(body)})
    with pytest.raises(FormatError, match="lookup.safetensors"):
        Index.open(index.path)


def test_what_shares_a_term_has_the_scores_of_all() -> None:
    texts = [*corpus(60), "", "unknown"]
    kept = np.arange(len(texts)) % 7 > 0
    for bm25 in (BM25(texts), BM25.over(BM25(texts)._parts, kept)):
        for query, row in zip(QUERIES, bm25.rows(QUERIES), strict=True):
            matches = bm25.matches(query)
            dense = np.where(np.isfinite(row), row, 0)
            np.testing.assert_array_equal(matches.of_all(len(texts)), dense)
            np.testing.assert_array_equal(matches.at(np.arange(len(texts))), dense)
            order = np.argsort(-dense, kind="stable")
            np.testing.assert_array_equal(matches.best(9), order[:9][dense[order[:9]] > 0])
            ranks = [int((dense > score).sum()) + 1 if score else 0 for score in dense]
            np.testing.assert_array_equal(matches.ranks(np.arange(len(texts))), ranks)
