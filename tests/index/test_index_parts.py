"""A search put together from parts is the search of the whole, bit for bit: ids, scores, order, ties, ranks."""

import numpy as np
import pytest
import torch
from index_fakes import WordEncoder, corpus

from d2llm.index import Index, asking, surrogate
from d2llm.index.parts import InParts, Part, shared_out
from d2llm.index.reader import Reader

COUNT = 300
QUERIES = ["red item7", "old new", "slow fast item40", "unknown words"]
WAYS = [
    {"mode": "hybrid"},
    {"mode": "iem"},
    {"mode": "iem", "task": "sym", "k": COUNT + 1},
    {"mode": "bm25"},
    {"mode": "cosine"},
    {"mode": "cosine", "k": COUNT},
    {"mode": "hybrid", "channels": ["cosine", "bm25"], "candidates": 60},
    {"mode": "iem", "channels": ["surrogate"], "candidates": 60},
    {"mode": "iem", "recall": 0.8, "k": 5},
    {"mode": "hybrid", "recall": 0.8, "k": 5, "filters": {"part": {"lt": 3}}},
    {"mode": "hybrid", "filters": {"part": {"gte": 3}}},
    {"mode": "iem", "given": [["3", "299", "150"]] * 4},
    {"mode": "cosine", "filters": {"part": 2}},
    {"mode": "iem", "channels": ["surrogate"], "candidates": 20, "filters": {"part": [0, 3]}},
]


class Parted(Reader):
    """Three parts in one process."""

    def _find(self, asked, vectors, texts, weight):
        state = self._snapshot
        segments = shared_out(state.starts, 3)
        parts = [Part(self.path, state.manifest, self._head, some) for some in segments]
        starts = state.starts[[some.start for some in segments]]

        def search(snapshot, head, task, among):
            def ask(method, *arguments):
                return [part.look(method, task, asked.filters, *arguments) for part in parts]

            return InParts(snapshot, head, task, among, ask, starts)

        return asked.find(state, self._head, vectors, texts, weight, search)


@pytest.mark.parametrize("dtype", [pytest.param("bfloat16", marks=pytest.mark.rest), "int8", "float32"])
def test_a_search_in_parts_is_one_of_the_whole(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(surrogate, "_STEPS", 20)
    monkeypatch.setattr(asking, "_WORTH", 1)
    texts = corpus(COUNT)
    texts[200:220] = texts[:20]
    metadata = [{"part": row // 70} for row in range(COUNT)]
    options = {"metadata": metadata, "shard_size": 40, "dtype": dtype, "progress": False}
    whole = Index.build(WordEncoder(), texts, tmp_path / "ix", **options)
    whole.fit_surrogate(corpus(200), rank=8, progress=False)
    whole.append(["red item7 again"], ["new"], progress=False)
    whole.delete(["7", "180", "299", *map(str, range(40, 80))])
    parted = Parted.open(whole.path, WordEncoder())
    for way in WAYS:
        asked = {"k": 10, "explain": True, **way}
        assert parted.search(QUERIES, **asked) == whole.search(QUERIES, **asked), way


class Poor:
    """An engine that finds every other row, not by their products, and says that it was asked."""

    asked = 0

    def search(self, queries, count):
        self.asked += 1
        numbers = np.arange(240)[::-2][:count]
        return np.zeros((len(queries), len(numbers)), np.float32), np.stack([numbers] * len(queries))


def test_an_engine_is_asked_by_the_whole(tmp_path, monkeypatch):
    """What was certified is what it finds: scanning parts instead might find less of what it counts on."""
    monkeypatch.setattr(surrogate, "_STEPS", 20)
    monkeypatch.setattr(asking, "_WORTH", 1)
    whole = Index.build(WordEncoder(), corpus(COUNT), tmp_path / "ix", shard_size=60, dtype="float32", progress=False)
    whole.fit_surrogate(corpus(200), rank=8, progress=False)
    whole.delete(["239"])
    parted = Parted.open(whole.path, WordEncoder())
    scanned = parted.search(QUERIES, 5, mode="iem", recall=0.8, explain=True)
    engine = parted._snapshot.surrogate[0].engine = whole._snapshot.surrogate[0].engine = Poor()
    found = [index.search(QUERIES, 5, mode="iem", recall=0.8, explain=True) for index in (whole, parted)]
    assert found[0] == found[1] != scanned and engine.asked == 2
    by_products = [
        index.search(QUERIES, mode="iem", channels=["surrogate"], candidates=30) for index in (whole, parted)
    ]
    assert by_products[0] == by_products[1] and engine.asked == 2


def test_parts_are_of_about_as_many_passages():
    starts = torch.tensor([0, 10, 20, 30, 40, 41])
    assert shared_out(starts, 2) == [slice(0, 2), slice(2, 5)] or shared_out(starts, 2) == [slice(0, 3), slice(3, 5)]
    assert shared_out(starts, 1) == [slice(0, 5)]
    assert len(shared_out(starts, 99)) == 5
