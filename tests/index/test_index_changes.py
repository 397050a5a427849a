from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from index_fakes import WordEncoder, corpus

from d2llm.bm25 import BM25
from d2llm.errors import InputError
from d2llm.index import Index, segment

CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 9)),
        st.tuples(st.just("delete"), st.lists(st.integers(0, 40), min_size=1, max_size=6, unique=True)),
    ),
    max_size=6,
)


@settings(max_examples=12, deadline=None)
@given(first=st.integers(1, 9), changes=CHANGES, shard_size=st.integers(1, 5))
def test_any_sequence_of_changes_equals_a_list(first, changes, shard_size):
    """After every change the index holds, and finds, what a plain list of passages does."""
    model, texts = WordEncoder(), corpus(70)
    with TemporaryDirectory() as folder:
        index = Index.build(model, texts[:first], Path(folder) / "ix", shard_size=shard_size, progress=False)
        live, added = [str(i) for i in range(first)], first
        for change, what in changes:
            if change == "append":
                index.append(texts[added : added + what], shard_size=shard_size, progress=False)
                live += [str(i) for i in range(added, added + what)]
                added += what
            elif unknown := [i for i in what if str(i) not in live]:
                with pytest.raises(InputError, match=f"such as '{unknown[0]}'"):
                    index.delete([str(i) for i in what])
            else:
                index.delete([str(i) for i in what])
                live = [name for name in live if int(name) not in what]
        for state in (index, Index.open(index.path, model, verify=True)):
            assert state.ids() == live and len(state) == len(live)
            if live:
                (hits,) = state.search("red item3", len(live))
                assert {hit.id: hit.text for hit in hits} == {name: texts[int(name)] for name in live}
                (hits,) = state.search("red item3", len(live), mode="bm25")
                fresh = BM25([texts[int(name)] for name in live])
                scores, rows = fresh.search(["red item3"], len(live))
                expected = [(live[row], score) for row, score in zip(rows[0], scores[0], strict=True) if score > 0]
                assert [(hit.id, hit.score) for hit in hits] == expected


def test_appended_in_parts_ranks_as_built_at_once(model, tmp_path):
    texts = corpus(40)
    whole = Index.build(model, texts, tmp_path / "whole", progress=False)
    parts = Index.build(model, texts[:13], tmp_path / "parts", progress=False)
    parts.append(texts[13:14], progress=False)
    parts.append(texts[14:], shard_size=10, progress=False)
    first, second = (ix.search(["old item9", "new"], 40)[0] for ix in (whole, parts))
    assert [hit.id for hit in first] == [hit.id for hit in second]


def test_a_deleted_id_may_come_back_with_another_text(index):
    index.delete("3")
    index.append([("3", "entirely different")], progress=False)
    hit = index.search("different", 1, mode="bm25")[0][0]
    assert (hit.id, hit.text) == ("3", "entirely different")
    with pytest.raises(InputError, match="ids: expected new ids.*'3'"):
        index.append([("3", "once more")], progress=False)


def test_everything_deleted_then_filled_again(index):
    index.delete(index.ids())
    assert len(index) == 0
    with pytest.raises(InputError, match="empty"):
        index.search("red", 1)
    index.append(["fresh start"], progress=False)
    assert index.search("red", 1)[0][0].text == "fresh start"


def test_a_reader_keeps_its_state_and_a_writer_builds_on_the_newest(model, index):
    reader, other = Index.open(index.path, model), Index.open(index.path, model)
    before = reader.search(["red", "old item2"], 50)
    index.delete([str(i) for i in range(20)])
    index.append(["a new one"], progress=False)
    other.append(["another"], progress=False)
    other.delete(["49"])
    Index.build(model, corpus(5), index.path, overwrite=True, progress=False)
    assert len(other) == 31 and other.ids()[-2:] == ["50", "51"]
    assert reader.search(["red", "old item2"], 50) == before
    assert len(Index.open(index.path, model)) == 5


def test_a_change_opens_only_what_it_wrote(index, monkeypatch):
    opened, original = [], segment.Segment.__init__

    def init(self, root, record, **settings):
        opened.append(record.rows)
        original(self, root, record, **settings)

    monkeypatch.setattr(segment.Segment, "__init__", init)
    index.delete(["3", "40"])
    index.append(["one more", "and more"], progress=False)
    assert opened == [2] and len(index) == 50 and index.search("one more", 1, mode="bm25")[0][0].id == "50"


def test_old_files_are_removed(index):
    for i in range(5):
        index.delete(str(i))
    assert len(list(index.path.glob("deleted-*"))) == 1
    Index.build(WordEncoder(1), corpus(3), index.path, overwrite=True, progress=False)
    kinds = sorted(path.name.split("-")[0] for path in index.path.iterdir() if not path.name.startswith("."))
    assert kinds == ["head", "manifest.json", "segments"]
    assert len(list((index.path / "segments").iterdir())) == 1
