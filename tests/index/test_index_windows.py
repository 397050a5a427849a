"""Passages beyond the limit of an encoder, encoded as a whole: their ends are found, and an index remembers that."""

import numpy as np
import pytest
import torch
from index_fakes import WordEncoder

from d2llm.errors import InputError
from d2llm.index import Index

LIMIT = 3
TEXTS = [f"red old item{i} and then at last number{i}" for i in range(12)]


class Limited(WordEncoder):
    """Reads three words of a passage, or with ``windows`` all."""

    def encode(self, texts, *, kind, batch_size, show_progress, windows=False):
        cut = texts if windows or kind == "query" else [" ".join(text.split()[:LIMIT]) for text in texts]
        return super().encode(cut, kind=kind, batch_size=batch_size, show_progress=show_progress)


@pytest.mark.parametrize("mode", ["iem", "cosine", "hybrid"])
def test_a_search_is_one_over_whole_passages(tmp_path, mode):
    model, options = Limited(), {"shard_size": 5, "dtype": "float32", "progress": False}
    index = Index.build(model, TEXTS[:9], tmp_path / "ix", windows=True, **options)
    Index.open(tmp_path / "ix", model).append(TEXTS[9:], progress=False)
    index = Index.open(tmp_path / "ix", model)
    index.delete(["4"])
    vectors = WordEncoder().encode(TEXTS, kind="passage", batch_size=1, show_progress=False)
    whole = Index.build(WordEncoder(), TEXTS, tmp_path / "whole", vectors=vectors, **options)
    whole.delete(["4"])
    query = "number7 number8"
    expected = {hit.id: hit.score for hit in whole.search(query, 11, mode=mode)[0]}
    found = {hit.id: hit.score for hit in index.search(query, 11, mode=mode)[0]}
    assert list(found)[:2] == list(expected)[:2] and found.keys() == expected.keys()
    np.testing.assert_allclose([found[name] for name in expected], list(expected.values()), atol=1e-5)


def test_whole_passages_and_cut_ones_are_two_contents(tmp_path):
    cut = Index.build(Limited(), TEXTS, tmp_path / "ix", progress=False)
    with pytest.raises(InputError, match="holds an index of other content"):
        Index.build(Limited(), TEXTS, tmp_path / "ix", windows=True, progress=False)
    whole = Index.build(Limited(), TEXTS, tmp_path / "ix", windows=True, progress=False, overwrite=True)
    assert not torch.equal(*(each._snapshot.gather(each._snapshot.live) for each in (cut, whole)))


def test_a_model_without_windows_is_refused_before_anything_is_encoded(tmp_path):
    model = WordEncoder()
    with pytest.raises(InputError, match="windows: expected a model that encodes texts in windows, got WordEncoder"):
        Index.build(model, TEXTS, tmp_path / "ix", windows=True, progress=False)
    Index.build(Limited(), TEXTS[:3], tmp_path / "ix", windows=True, progress=False)
    with pytest.raises(InputError, match="windows: expected a model"):
        Index.open(tmp_path / "ix", model).append(TEXTS[3:], progress=False)
    assert not model.encoded
