"""Builds from an iterator: taken piece by piece, whole or not at all, and the same as from a list."""

import pytest
from index_fakes import WordEncoder, corpus

from d2llm.errors import InputError
from d2llm.index import Index, intake
from d2llm.index.manifest import Manifest

OPTIONS = {"shard_size": 20, "dtype": "float32", "progress": False}


@pytest.fixture(autouse=True)
def pieces(monkeypatch):
    monkeypatch.setattr(intake, "_PIECE", 7)


def triples(count: int) -> list[tuple[str, str, dict]]:
    return [(f"d{i}", text, {"row": i} if i % 3 else {}) for i, text in enumerate(corpus(count))]


class Watched(WordEncoder):
    """Sees how many passages were taken of a source and are not encoded yet."""

    def __init__(self) -> None:
        super().__init__()
        self.taken = self.most = 0

    def source(self, passages):
        for passage in passages:
            self.taken += 1
            self.most = max(self.most, self.taken - len(self.encoded))
            yield passage


def test_no_more_than_a_segment_and_a_piece_is_taken_ahead(tmp_path):
    model = Watched()
    index = Index.build(model, model.source(triples(130)), tmp_path / "ix", **OPTIONS)
    assert len(index) == model.taken == 130 and model.most <= 20 + 7
    listed = Index.build(WordEncoder(), triples(130), tmp_path / "list", **OPTIONS)
    assert Manifest.load(index.path) == Manifest.load(listed.path)
    more = [(f"m{i}", f"one more {i}") for i in range(90)]
    model.taken, model.most, model.encoded = 0, 0, []
    index.append(model.source(iter(more)), shard_size=20, progress=False)
    assert model.taken == 90 and model.most <= 20 + 7 and len(Index.open(index.path, verify=True)) == 220
    plain = Index.build(model, iter(corpus(30)), tmp_path / "plain", **OPTIONS)
    assert plain.ids() == [str(i) for i in range(30)]


def test_a_stream_that_breaks_goes_on_from_its_start(tmp_path, model):
    def broken():
        yield from triples(75)
        raise ConnectionError

    with pytest.raises(ConnectionError):
        Index.build(model, broken(), tmp_path / "ix", **OPTIONS)
    assert len(model.encoded) == 60 and not (tmp_path / "ix" / "manifest.json").exists()
    index = Index.build(model, iter(triples(80)), tmp_path / "ix", **OPTIONS)
    assert model.encoded == corpus(80) and len(index) == 80
    again = WordEncoder()
    assert len(Index.build(again, iter(triples(80)), index.path, **OPTIONS)) == 80 and not again.encoded
    source = iter(triples(79))
    with pytest.raises(InputError, match="holds an index of other content"):
        Index.build(again, source, index.path, **OPTIONS)
    before = Manifest.load(index.path)
    assert Index.build(again, iter(triples(80)), index.path, overwrite=True, **OPTIONS) and not again.encoded
    assert Manifest.load(index.path) == before
    assert len(Index.build(again, iter(triples(79)), index.path, overwrite=True, **OPTIONS)) == 79
    assert len(again.encoded) == 19


def test_an_upsert_of_a_stream_takes_what_is_new(tmp_path, model):
    index = Index.build(model, iter(triples(80)), tmp_path / "ix", **OPTIONS)
    model.encoded.clear()
    changed = [(name, "another" if name == "d50" else text, {"row": 9}) for name, text, _ in triples(90)]
    unchanged = [
        each if each[0] not in ("d50", "d60") and int(each[0][1:]) < 80 else changed[int(each[0][1:])]
        for each in triples(90)
    ]
    index.append(iter(unchanged), upsert=True, shard_size=20, progress=False)
    assert model.encoded == ["another", corpus(61)[60], *corpus(90)[80:]]
    assert sorted(index.ids()) == sorted(name for name, _, _ in triples(90))
    hits = Index.open(index.path, model, verify=True).search("another", 90, mode="cosine", filters={"row": 9})[0]
    assert {hit.id for hit in hits} == {"d50", "d60", *(f"d{i}" for i in range(80, 90))}


@pytest.mark.parametrize(
    ("passages", "message"),
    [
        ([], "passages: expected at least one, got an empty corpus"),
        ([*corpus(10), 3], r"passages\[3\]: expected a non-empty text, got 3; counted from passage 7 on"),
        ([*triples(30), ("d2", "x")], "ids: expected distinct ids, got 'd2' a second time; counted from passage 28 on"),
        ([*triples(30), ("e", "x", {"row": "3"})], r"metadata\[30\].row: expected a number, as in passages before"),
    ],
)
def test_faults_of_a_stream(tmp_path, model, passages, message):
    with pytest.raises(InputError, match=message):
        Index.build(model, iter(passages), tmp_path / "ix", **OPTIONS)
    assert not (tmp_path / "ix" / "manifest.json").exists()
    with pytest.raises(InputError, match=message):
        intake.check_passages(iter(passages))


def test_a_stream_comes_alone(tmp_path, model):
    for beside in ({"ids": ["a"]}, {"metadata": [{}]}, {"vectors": [[1.0]]}):
        with pytest.raises(
            InputError, match="passages: expected an iterator of .* alone, got ids, metadata or vectors"
        ):
            Index.build(model, iter(["a"]), tmp_path / "ix", **beside, **OPTIONS)
