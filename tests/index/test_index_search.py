import numpy as np
import pytest
import torch
from index_fakes import DIM, WordEncoder, corpus, head

from d2llm.index import Hit, Index, ranking
from d2llm_kernels.rough import search

QUERIES = ["red item7", "old new", "slow fast item40", "unknown words"]


def vectors_of(model: WordEncoder, texts: list[str]) -> np.ndarray:
    return model.encode(texts, kind="query", batch_size=1, show_progress=False)


def brute_force(model: WordEncoder, texts: list[str], queries: list[str], task: int) -> torch.Tensor:
    with torch.no_grad():
        return model.iem.score_all(*(torch.from_numpy(vectors_of(model, t)) for t in (queries, texts)), task)


def ids(hits: list[list[Hit]]) -> list[list[str]]:
    return [[hit.id for hit in row] for row in hits]


@pytest.mark.parametrize("task", ["sym", "asym"])
@pytest.mark.parametrize("chunk", [5, 16384])
def test_exact_search_is_brute_force(model, index, task, chunk, monkeypatch):
    monkeypatch.setattr(ranking, "_BLOCK", chunk)
    monkeypatch.setattr(search, "_BLOCK", chunk)
    texts = corpus(50)
    expected = brute_force(model, texts, QUERIES, ["sym", "asym"].index(task))
    found = index.search(QUERIES, 50, task=task, mode="iem")
    order = expected.argsort(dim=1, descending=True, stable=True)
    scores = torch.tensor([[hit.score for hit in row] for row in found])
    torch.testing.assert_close(scores, expected.gather(1, order), rtol=1e-5, atol=1e-5)
    assert ids(found) == [[str(i) for i in row] for row in order.tolist()]
    assert all(hit.text == texts[int(hit.id)] and hit.rank == i for row in found for i, hit in enumerate(row, 1))


@pytest.mark.parametrize("k", [1, 20, 400])
def test_a_first_look_in_bfloat16_changes_nothing(model, tmp_path, k):
    torch.manual_seed(0)
    vectors, queries = torch.randn(700, DIM), torch.randn(3, DIM)
    path = tmp_path / "ix"
    index = Index.build(model.iem, None, path, vectors=vectors, dtype="bfloat16", keep_vectors=False, progress=False)
    with torch.no_grad():
        rows = model.iem.project_passages(vectors).bfloat16().float()
        values, order = model.iem.topk(model.iem.project_queries(queries), rows, k, 1)
    found = index.search_vectors(queries, k)
    assert ids(found) == [[str(i) for i in row] for row in order.tolist()]
    scores = torch.tensor([[hit.score for hit in row] for row in found])
    torch.testing.assert_close(scores, values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["iem", "hybrid"])
@pytest.mark.parametrize("channels", [["cosine"], ["bm25", "cosine"]])
def test_two_stages_over_all_candidates_are_exact(index, mode, channels):
    expected = ids(index.search(QUERIES, 10, mode=mode))
    for candidates in (50, 10_000):
        assert ids(index.search(QUERIES, 10, mode=mode, channels=channels, candidates=candidates)) == expected


def test_each_hit_says_which_channels_found_it(index):
    (hits,) = index.search("red item21", 9, channels=["bm25", "cosine"], candidates=9, explain=True)
    for channel in ("bm25", "cosine"):
        places = {hit.id: hit.rank for hit in index.search("red item21", 9, mode=channel)[0]}
        assert {hit.id: hit.ranks[channel] for hit in hits if channel in hit.ranks}.items() <= places.items()
    assert all(hit.ranks for hit in hits) and hits[0].ranks["bm25"] == 1
    assert index.search("red item21", 1, channels=["cosine"])[0][0].ranks is None


def test_first_stage_chooses_by_its_own_measure(model, index):
    texts = corpus(50)
    assert index.search("item23", 1, mode="iem", channels=["bm25"], candidates=1)[0][0].text == texts[23]
    assert index.search(texts[31], 1, channels=["cosine"], candidates=1)[0][0].text == texts[31]
    q, p = vectors_of(model, [QUERIES[0]]), vectors_of(model, texts)
    cosine = (p @ q[0]) / np.linalg.norm(p, axis=1)
    found = index.search(QUERIES[0], 8, mode="iem", channels=["cosine"], candidates=8)[0]
    assert {int(hit.id) for hit in found} == set(np.argsort(-cosine)[:8].tolist())
    assert [hit.score for hit in found] == sorted((hit.score for hit in found), reverse=True)


@pytest.mark.parametrize("channels", [(), ("cosine",)])
def test_equal_passages_keep_their_order(tmp_path, channels, monkeypatch):
    monkeypatch.setattr(ranking, "_BLOCK", 3)
    monkeypatch.setattr(search, "_BLOCK", 3)
    vectors = np.zeros((20, DIM), dtype=np.float32)
    vectors[:, 7] = 1
    scorer = head()
    for weight in scorer.parameters():
        # Multiples of 1/8 add up without rounding, whatever the order: equal passages score equal in any chunk.
        weight.data = (weight.data * 8).round() / 8
    index = Index.build(scorer, None, tmp_path / "ix", vectors=vectors, shard_size=7, progress=False)
    index.delete(["0", "8"])
    expected = [str(i) for i in range(20) if i not in (0, 8)]
    assert ids(index.search_vectors(vectors[:2], 5, channels=channels, candidates=6)) == [expected[:5]] * 2
    assert ids(index.search_vectors(vectors[:1], 18, channels=channels, candidates=18)) == [expected]


def test_a_segment_whose_passages_are_all_deleted_is_passed_over(index):
    index.delete([str(i) for i in range(16, 32)])
    for mode in ("hybrid", "iem", "cosine", "bm25"):
        assert 0 < len(index.search("red item3", 50, mode=mode)[0]) <= 34
    assert len(index.search("red item3", 34, channels=["bm25", "cosine"])[0]) == 34


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 2**-8), ("float16", 2**-11)])
def test_storage_rounds_no_more_than_its_dtype(model, tmp_path, dtype, tolerance):
    texts = corpus(40)
    index = Index.build(model, texts, tmp_path / dtype, dtype=dtype, progress=False)
    expected = brute_force(model, texts, QUERIES, 1)
    found = index.search(QUERIES, 40, mode="iem")
    scores = torch.tensor([[hit.score for hit in sorted(row, key=lambda hit: int(hit.id))] for row in found])
    # Two ReLU layers of xavier weights pass on the rounding of b with a gain below 16 here.
    assert (scores - expected).abs().max() < 16 * tolerance * expected.abs().max()
    assert (scores - expected).abs().max() > 0


def test_vectors_alone(model, tmp_path):
    texts = corpus(30)
    vectors = vectors_of(model, texts)
    names = [f"doc{i}" for i in range(30)]
    index = Index.build(model.iem, None, tmp_path / "v", vectors=vectors, ids=names, dtype="float32", progress=False)
    with_texts = Index.build(model, texts, tmp_path / "t", dtype="float32", progress=False)
    found = index.search_vectors(vectors[:3], 4)
    assert ids(found) == [[f"doc{hit.id}" for hit in row] for row in with_texts.search(texts[:3], 4, mode="iem")]
    assert all(hit.text is None for row in found for hit in row)
    # The head travels with the index: no model is needed to go on.
    again = Index.open(tmp_path / "v")
    assert again.search_vectors(torch.from_numpy(vectors[:3]), 4) == found
    again.append(None, vectors=vectors[:1] + 1, ids=["late"])
    assert again.search_vectors(vectors[:1], 31)[0] != found[0] and len(again) == 31


def test_given_vectors_are_not_encoded_again(model, tmp_path):
    texts = corpus(12)
    vectors = torch.randn(12, DIM, dtype=torch.float64)
    pairs = [(f"d{i}", text) for i, text in enumerate(texts)]
    index = Index.build(model, pairs, tmp_path / "ix", vectors=vectors, progress=False)
    assert model.encoded == []
    hit = index.search_vectors(vectors[:1], 12)[0][0]
    assert hit.text == texts[int(hit.id[1:])]


def test_a_single_text_and_any_string(model, tmp_path):
    odd = ["line\nbreak", 'quote " and \\', "中文 段落", "lone \ud800 surrogate", "nul \x00 byte"]
    index = Index.build(model, odd, tmp_path / "ix", progress=False)
    assert sorted(hit.text for hit in index.search("line", 5, mode="iem")[0]) == sorted(odd)
    assert [hit.text for hit in Index.open(tmp_path / "ix", model).search("中文", 5, mode="bm25")[0]] == [odd[2]]


def test_head_in_the_folder_equals_the_models(model, index):
    q = vectors_of(model, QUERIES)
    assert Index.open(index.path).search_vectors(q, 9, task="sym") == index.search(QUERIES, 9, task="sym", mode="iem")
