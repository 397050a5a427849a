"""Upserts, and fewer segments of the same passages."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from index_fakes import DIM, WordEncoder, corpus

from d2llm.errors import InputError
from d2llm.index import Index, compaction, surrogate
from d2llm.index.manifest import Manifest

QUERIES = ["red item7", "old new", "slow fast item40"]


def sizes(index: Index) -> list[int]:
    return [segment.rows for segment in Manifest.load(index.path).segments]


def found(index: Index, mode: str) -> list[list[tuple[str, str]]]:
    return [[(hit.id, hit.text) for hit in row] for row in index.search(QUERIES, len(index), mode=mode)]


def test_an_upsert_replaces_adds_and_leaves_what_is_the_same(model, index):
    model.encoded.clear()
    texts = corpus(50)
    index.append([("7", "another text"), ("8", texts[8]), ("new", "quite new")], upsert=True, progress=False)
    assert model.encoded == ["another text", "quite new"] and len(index) == 51
    now = {hit.id: hit.text for hit in Index.open(index.path, model, verify=True).search("red", 51)[0]}
    assert now == dict(zip(map(str, range(50)), texts, strict=True)) | {"7": "another text", "new": "quite new"}
    before = Manifest.load(index.path)
    index.append([("8", texts[8])], upsert=True, progress=False)
    assert Manifest.load(index.path) == before
    index.append(["counted on"], upsert=True, progress=False)
    assert index.ids()[-1] == "52"


def test_an_upsert_of_vectors_always_replaces(index):
    index.append([("7", corpus(50)[7])], vectors=np.ones((1, DIM), np.float32), upsert=True, progress=False)
    assert len(index) == 50 and index.ids()[-1] == "7"


def test_a_killed_upsert_leaves_the_old_index(index, model, monkeypatch):
    before = found(index, "hybrid")

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            index.append([("7", "another")], upsert=True, progress=False)
    now = Index.open(index.path, model, verify=True)
    assert found(now, "hybrid") == before
    now.append([("7", "another")], upsert=True, progress=False)
    assert len(now) == 50 and now.search("another", 1, mode="bm25")[0][0].id == "7"


@settings(max_examples=8, deadline=None)
@given(
    parts=st.lists(st.integers(1, 7), min_size=1, max_size=6),
    gone=st.sets(st.integers(0, 40), max_size=9),
    shard_size=st.integers(1, 9),
    dtype=st.sampled_from(["float32", "bfloat16", "int8"]),
)
def test_a_compacted_index_finds_the_same(parts, gone, shard_size, dtype):
    model, texts = WordEncoder(), corpus(60)
    with TemporaryDirectory() as folder:
        index = Index.build(model, texts[: parts[0]], Path(folder) / "ix", dtype=dtype, shard_size=5, progress=False)
        for count in parts[1:]:
            start = int(index.ids()[-1]) + 1
            index.append(texts[start : start + count], progress=False)
        reader = Index.open(index.path, model)
        known = sorted(set(index.ids()) & set(map(str, gone)))
        if known:
            index.delete(known)
        before = {mode: found(index, mode) for mode in ("iem", "bm25", "cosine")} if len(index) else {}
        live, everyone = index.ids(), reader.ids()
        index.compact(shard_size=shard_size)
        # Segments that are full and whole stay as they are, the others have `shard_size` passages.
        assert all(size >= shard_size for size in sizes(index)[:-1]) and sum(sizes(index)) == len(live)
        for state in (index, Index.open(index.path, model, verify=True)):
            assert state.ids() == live
            for mode, hits in before.items():
                if dtype != "int8" or mode != "iem":
                    assert found(state, mode) == hits
        assert reader.ids() == everyone
        names = Manifest.load(index.path)
        index.compact(shard_size=shard_size)
        assert Manifest.load(index.path) == names


def test_many_small_appends_do_not_leave_many_segments(model, index, monkeypatch):
    monkeypatch.setattr(compaction, "MOST_SMALL", 4)
    for i in range(7):
        index.append([f"one more {i}"], shard_size=16, progress=False)
    # Three full ones, then what was put together, then what came since.
    assert sizes(index)[:3] == [16, 16, 16] and len(sizes(index)) <= 7
    assert index.ids() == [str(i) for i in range(57)] and Index.open(index.path, verify=True).ids() == index.ids()


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_an_append_puts_no_more_together_than_a_segment_holds(model, tmp_path, monkeypatch, dtype):
    texts = corpus(60)
    index = Index.build(model, texts, tmp_path / "ix", shard_size=3, dtype=dtype, progress=False)
    index.delete(["1", "40", "55", "59"])
    before = {mode: found(index, mode) for mode in ("bm25", "cosine", "hybrid")}
    monkeypatch.setattr(compaction, "MOST_SMALL", 4)
    written, original = [], compaction.write_segment
    monkeypatch.setattr(compaction, "write_segment", lambda *a, **o: written.append(len(a[3])) or original(*a, **o))
    for i in range(8):
        index.append([("added", f"one more {i}")], shard_size=13, upsert=True, progress=False)
    index.delete(["added"])
    assert max(written) <= 13 and len(sizes(index)) <= 8
    state = Index.open(index.path, model, verify=True)
    assert state.ids() == [str(i) for i in range(60) if i not in (1, 40, 55, 59)]
    for mode, hits in before.items():
        if dtype != "int8" or mode != "hybrid":
            assert found(state, mode) == hits


def test_a_surrogate_is_kept_by_appends_and_dropped_where_its_segments_are_written_anew(model, index, monkeypatch):
    monkeypatch.setattr(surrogate, "_STEPS", 3)
    monkeypatch.setattr(compaction, "MOST_SMALL", 2)
    index.fit_surrogate(["red", "old", "new"], rank=4, progress=False)
    for i in range(4):
        index.append([f"one more {i}"], shard_size=16, progress=False)
    assert sizes(index)[:4] == [16, 16, 16, 2] and len(sizes(index)) <= 6 and index._snapshot.surrogate is not None
    index.compact(shard_size=16)
    assert sizes(index) == [16, 16, 16, 6] and index._snapshot.surrogate is None
    assert not list(index.path.glob("surrogate-*"))


def test_a_killed_compaction_leaves_the_old_index(model, index, monkeypatch):
    index.delete(["3"])
    before = found(index, "hybrid")
    done = []

    def killed(*arguments, **options):
        if done:
            raise KeyboardInterrupt
        done.append(True)
        return original(*arguments, **options)

    original = compaction.write_segment
    with monkeypatch.context() as patch:
        patch.setattr(compaction, "write_segment", killed)
        with pytest.raises(KeyboardInterrupt):
            index.compact(shard_size=16)
    now = Index.open(index.path, model, verify=True)
    assert found(now, "hybrid") == before
    now.compact(shard_size=16)
    assert sizes(now) == [16, 16, 16, 1] and len(list(now.path.glob("segments/*"))) == 4


def test_compaction_refuses(index):
    with pytest.raises(InputError, match="shard_size: expected an integer, at least 1"):
        index.compact(shard_size=0)
    index.delete(index.ids())
    index.compact()
    assert sizes(index) == [] and len(index) == 0
    index.append(["a new beginning"], progress=False)
    assert len(Index.open(index.path, verify=True)) == 1
