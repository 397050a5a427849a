"""An index that stores int8: what a search finds, what a passage takes, changes, damage, and other indices."""

import json

import numpy as np
import pytest
import torch
from index_fakes import DIM, WordEncoder, corpus
from safetensors.torch import load_file, save_file

from d2llm.errors import FormatError, InputError
from d2llm.index import Index
from d2llm_kernels import IEM

QUERIES = ["red item7", "old new", "slow fast item40"]


@pytest.fixture
def built(model, tmp_path):
    return Index.build(model, corpus(50), tmp_path / "ix", shard_size=16, dtype="int8", progress=False)


def stored(index: Index) -> torch.Tensor:
    """The projected passages as the files hold them."""
    rows = []
    for segment in json.loads((index.path / "manifest.json").read_text())["segments"]:
        part = load_file(index.path / "segments" / segment["name"] / "vectors.safetensors")
        assert part["projected"].dtype == torch.int8
        rows.append(part["projected"].float() * part["scale"][:, None] + part["centre"])
    return torch.cat(rows)


def found(hits) -> tuple[torch.Tensor, list[list[int]]]:
    return torch.tensor([[hit.score for hit in row] for row in hits]), [[int(hit.id) for hit in row] for row in hits]


def test_search_is_exact_for_what_is_stored(model, built):
    index = Index.open(built.path, model, verify=True)
    assert json.loads((built.path / "manifest.json").read_text())["dtype"] == "int8"
    queries = torch.from_numpy(model.encode(QUERIES, kind="query", batch_size=1, show_progress=False))
    with torch.no_grad():
        exact = model.iem.project_passages(
            torch.from_numpy(model.encode(corpus(50), kind="query", batch_size=1, show_progress=False))
        )
        values, order = model.iem.topk(model.iem.project_queries(queries), stored(index), 50, 1)
    assert (stored(index) - exact).abs().max() < exact.abs().max() / 100
    for hits in (index.search(QUERIES, 50, mode="iem"), Index.open(built.path).search_vectors(queries, 50)):
        scores, ids = found(hits)
        torch.testing.assert_close(scores, values, rtol=1e-4, atol=1e-4)
        assert ids == order.tolist()


@pytest.mark.parametrize("channel", ["bm25", "cosine"])
def test_two_stages_score_the_same_rows(built, channel):
    expected = found(built.search(QUERIES, 10))
    scores, ids = found(built.search(QUERIES, 10, channels=[channel, "cosine"], candidates=50))
    torch.testing.assert_close(scores, expected[0], rtol=1e-4, atol=1e-4)
    assert ids == expected[1]


def test_append_and_delete(model, built):
    built.append(["fresh item99"], ["99"], progress=False)
    built.delete(["7", "40"])
    assert len(built) == 49
    ids = found(Index.open(built.path, model).search(QUERIES, 49))[1]
    assert all(sorted(row) == sorted({*range(50), 99} - {7, 40}) for row in ids)


def test_takes_half_the_room_of_bfloat16(tmp_path):
    vectors = np.random.default_rng(0).standard_normal((2000, DIM), dtype=np.float32)
    scorer, sizes = IEM(DIM, hidden=512), {}
    for dtype in ("int8", "bfloat16"):
        options = {"vectors": vectors, "dtype": dtype, "keep_vectors": False, "progress": False}
        index = Index.build(scorer, None, tmp_path / dtype, **options)
        (file,) = index.path.glob("segments/*/vectors.safetensors")
        # The offsets of the texts' lines take 8 bytes a passage in either.
        sizes[dtype] = file.stat().st_size / len(vectors) - 8
    assert sizes["int8"] < 520 and sizes["bfloat16"] > 1024


def test_built_again_with_another_dtype_needs_overwrite(model, built):
    with pytest.raises(InputError, match="holds an index of other content"):
        Index.build(model, corpus(50), built.path, shard_size=16, progress=False)
    other = Index.build(model, corpus(50), built.path, shard_size=16, progress=False, overwrite=True)
    assert found(other.search(QUERIES, 5))[1] == found(built.search(QUERIES, 5))[1]


@pytest.mark.parametrize("name", ["scale", "centre"])
def test_a_segment_without_its_scale_or_centre_is_named(model, built, name):
    path = sorted(built.path.glob("segments/*/vectors.safetensors"))[0]
    size = path.stat().st_size
    tensors = load_file(path)
    # Of the same size, so that only the header tells.
    tensors[name[::-1]] = tensors.pop(name)
    save_file(tensors, path)
    assert path.stat().st_size == size
    with pytest.raises(FormatError, match=path.parent.name):
        Index.open(built.path, model)


def test_words_are_encoded_once(model: WordEncoder, built):
    model.encoded.clear()
    Index.build(model, corpus(50), built.path, shard_size=16, dtype="int8", progress=False)
    assert not model.encoded
