"""Metadata with passages, and searches that find only what passes a filter."""

import itertools
import json
import operator
import random
import shutil
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from index_fakes import DIM, WordEncoder, corpus, head

from d2llm.errors import FormatError, InputError
from d2llm.files import read_json, write_json
from d2llm.index import Index, asking, surrogate
from d2llm.index.manifest import _digest

COUNT, QUERIES = 120, ["red item7 old", "new fast blue"]
LANGS, YEARS = ["de", "en", "zh", "ü", "\ud800", ""], [2019, 2020, 2020.5, 2021, -3, 1e300]
OPERATORS = {"gt": operator.gt, "gte": operator.ge, "lt": operator.lt, "lte": operator.le}
MODES = ("hybrid", "iem", "bm25", "cosine")


def described(count: int) -> list[dict]:
    draw = random.Random(3)
    every = []
    for _ in range(count):
        fields = {"lang": draw.choice([*LANGS, ["en", "de"], ["zh", "zh"], []]), "year": draw.choice(YEARS)}
        fields |= {"open": draw.random() < 0.5, "a/b: c": draw.choice(["x", None])}
        every.append({name: value for name, value in fields.items() if draw.random() < 0.8})
    return every


def plain(fields: Mapping) -> dict:
    return {name: value for name, value in fields.items() if value not in (None, [])}


def passes(fields: Mapping, filters: Mapping) -> bool:
    def holds(value, wanted) -> bool:
        if isinstance(wanted, Mapping):
            return all(OPERATORS[name](value, bound) for name, bound in wanted.items())
        return value in (wanted if isinstance(wanted, list) else [wanted])

    def several(value) -> list:
        return value if isinstance(value, list) else [value]

    return all(
        name in fields and any(holds(each, wanted) for each in several(fields[name]))
        for name, wanted in filters.items()
    )


def bounds(values: list) -> st.SearchStrategy:
    return st.dictionaries(st.sampled_from([*OPERATORS]), st.sampled_from(values), min_size=1, max_size=2)


def wanted(values: list) -> st.SearchStrategy:
    some = st.lists(st.sampled_from(values), min_size=1, max_size=3)
    return st.one_of(st.sampled_from(values), some, bounds(values))


FILTERS = st.fixed_dictionaries(
    {},
    optional={
        "lang": wanted([*LANGS, "absent", "e"]),
        "year": wanted([*YEARS, 5, 2020.2]),
        "open": st.sampled_from([True, False, [True], [True, False]]),
        "a/b: c": st.sampled_from(["x", "y"]),
    },
).filter(bool)


@pytest.fixture(name="texts", scope="module")
def fixture_texts() -> list[str]:
    return corpus(COUNT)


@pytest.fixture(name="made", scope="module")
def fixture_made(tmp_path_factory, texts) -> Index:
    path = tmp_path_factory.mktemp("made") / "ix"
    options = {"shard_size": 25, "dtype": "float32", "progress": False}
    return Index.build(WordEncoder(), texts, path, metadata=described(COUNT), **options)


@pytest.fixture(name="copy")
def fixture_copy(made, model, tmp_path) -> Index:
    shutil.copytree(made.path, tmp_path / "ix")
    return Index.open(tmp_path / "ix", model)


def rows(hits) -> list[list[tuple]]:
    return [[(hit.id, round(hit.score, 3), hit.metadata) for hit in each] for each in hits]


@settings(max_examples=20, deadline=None)
@given(filters=FILTERS)
def test_a_filtered_search_is_the_whole_one_without_what_does_not_pass(made, filters):
    expected = {str(i) for i, fields in enumerate(described(COUNT)) if passes(plain(fields), filters)}
    for mode in MODES:
        found = made.search(QUERIES, COUNT, mode=mode, filters=filters)
        whole = made.search(QUERIES, COUNT, mode=mode)
        kept = [[hit for hit in each if hit.id in expected] for each in whole]
        assert rows(found) == rows(kept)
        assert [[hit.rank for hit in each] for each in found] == [[*range(1, len(each) + 1)] for each in kept]
    if expected:
        for channel in ("bm25", "cosine"):
            found = made.search(QUERIES, 3, channels=[channel], candidates=4, filters=filters, explain=True)
            assert {hit.id for each in found for hit in each} <= expected
            # Chosen among those that pass: as many as there are, up to the candidates.
            assert channel == "bm25" or all(len(each) == min(3, len(expected)) for each in found)
            assert all(hit.promised is None for each in found for hit in each)


def test_hits_have_the_metadata_as_it_was_given(made, copy):
    for index in (made, copy):
        hits = index.search("red", COUNT, mode="cosine")[0]
        assert {int(hit.id): hit.metadata for hit in hits} == dict(enumerate(map(plain, described(COUNT))))
        assert all(type(hit.metadata.get("open", True)) is bool for hit in hits)


def test_changes_keep_metadata(copy, model):
    live = dict(enumerate(map(plain, described(COUNT))))
    live = {str(name): fields for name, fields in live.items()}
    copy.append([("n1", "quite new", {"year": 2030, "place": "here"}), ("n2", "new as well", {})], progress=False)
    copy.append([("n3", "and this")], upsert=True, progress=False)
    live |= {"n1": {"year": 2030, "place": "here"}, "n2": {}, "n3": {}}
    model.encoded.clear()
    # The same text with other metadata is another passage; with the same it is left alone.
    copy.append([("7", corpus(8)[7], {"lang": "fr"}), ("8", corpus(9)[8], live["8"])], upsert=True, progress=False)
    assert model.encoded == [corpus(8)[7]]
    live["7"] = {"lang": "fr"}
    copy.delete(["0", "30"])
    del live["0"], live["30"]
    before = copy._snapshot
    copy.compact(shard_size=50)
    assert copy._snapshot.manifest.segments != before.manifest.segments
    for filters in ({"lang": "fr"}, {"place": "here"}, {"year": {"gte": 2020}}, {"lang": ["en", "zh"], "open": True}):
        expected = {name for name, fields in live.items() if passes(fields, filters)}
        for index in (copy, Index.open(copy.path, model, verify=True)):
            found = index.search("red", COUNT, filters=filters)[0]
            assert {hit.id for hit in found} == expected and expected
            assert all(hit.metadata == live[hit.id] for hit in found)


def test_vectors_alone_have_metadata_too(tmp_path):
    vectors = np.random.default_rng(0).standard_normal((9, DIM)).astype(np.float32)
    fields = [{"n": np.int64(i), "odd": np.bool_(i % 2), "half": np.float32(i / 2)} for i in range(9)]
    Index.build(head(), None, tmp_path / "ix", vectors=vectors, metadata=fields, progress=False)
    index = Index.open(tmp_path / "ix")
    for mode in ("iem", "cosine"):
        found = index.search_vectors(vectors[:2], 9, mode=mode, filters={"n": {"gt": 2, "lte": 6}, "odd": False})
        assert [{hit.id for hit in each} for each in found] == [{"4", "6"}] * 2
    assert found[0][0].metadata == {"n": int(found[0][0].id), "odd": False, "half": int(found[0][0].id) / 2}


def test_a_filter_that_nothing_passes_finds_nothing(made):
    for options in (*({"mode": mode} for mode in MODES), {"channels": ["bm25", "cosine"]}):
        assert made.search(QUERIES, 5, filters={"year": {"gt": 5, "lt": 5}}, **options) == [[], []]


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({}, "filters: expected at least one field, got none; leave filters out"),
        ("lang", "filters: expected fields and what they must hold, got 'lang'"),
        ({"langs": "en"}, "filters: langs: unknown field; expected one of a/b: c, lang, open, year"),
        ({"lang": []}, "filters.lang: expected at least one value, got none"),
        ({"lang": 3}, "filters.lang: expected a text, as the field holds, got 3"),
        ({"lang": [["en"]]}, r"filters.lang: expected a text, as the field holds, got \['en'\]"),
        ({"lang": None}, "filters.lang: expected a text, as the field holds, got None"),
        ({"year": "2020"}, "filters.year: expected a number, as the field holds, got '2020'"),
        ({"year": True}, "filters.year: expected a number, as the field holds, got True"),
        ({"year": [2020, "x"]}, "filters.year: expected a number, as the field holds, got 'x'"),
        ({"year": {"gte": float("nan")}}, "filters.year: expected a number, as the field holds, got nan"),
        ({"year": 10**400}, "filters.year: expected a number, as the field holds, got 1000"),
        ({"year": {}}, r"filters.year: expected some of gte, gt, lt, lte, got \[\]"),
        ({"year": {"over": 3}}, r"filters.year: expected some of gte, gt, lt, lte, got \['over'\]"),
        ({"open": {"gte": True}}, "filters.open: expected true or false, got bounds"),
        ({"open": 1}, "filters.open: expected a truth, as the field holds, got 1"),
        ({3: 3}, "filters: 3: unknown field"),
    ],
)
def test_filters_that_are_refused(made, filters, message):
    for mode in ("iem", "bm25"):
        with pytest.raises(InputError, match=message):
            made.search("red", filters=filters, mode=mode)


def test_an_index_without_metadata_has_no_fields(index):
    with pytest.raises(InputError, match="filters: lang: unknown field; expected none, since no passage has metadata"):
        index.search("red", filters={"lang": "en"})
    assert index.search("red", 1)[0][0].metadata == {}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ([{"year": "2020"}], r"metadata\[0\].year: expected a number, as in passages before, got '2020'"),
        ([{"new": "x"}, {"new": True}], r"metadata\[1\].new: expected a text, as in passages before, got True"),
        ([{}, {"new": {"a": 1}}], r"metadata\[1\].new: expected a text, a list of texts, a finite number"),
        ([{"new": ["a", 1]}], r"metadata\[0\].new: expected a text, a list of texts"),
        ([{"new": float("inf")}], r"metadata\[0\].new: .* got inf"),
        ([{"new": 2**53 + 1}], r"metadata\[0\].new: .*up to 2\^53.* got 9007199254740993"),
        ([{"": 1}], r"metadata\[0\]: expected non-empty texts as names of fields, got ''"),
        (["year"], r"metadata\[0\]: expected fields and their values, got 'year'"),
        ([{}, {}, {}], "metadata: expected 2, one a passage, got 3"),
    ],
)
def test_metadata_that_is_refused(copy, fields, message):
    count = min(2, len(fields))
    with pytest.raises(InputError, match=message):
        copy.append([f"new {i}" for i in range(count)], metadata=fields, progress=False)
    triples = [(f"new {i}", f"new {i}", each) for i, each in enumerate(fields)]
    if count == len(fields):
        with pytest.raises(InputError, match=message):
            copy.append(triples, progress=False)
    assert len(Index.open(copy.path)) == COUNT


def test_metadata_is_given_once(tmp_path, model):
    with pytest.raises(InputError, match="metadata: expected None where passages are"):
        Index.build(model, [("a", "text", {})], tmp_path / "ix", metadata=[{}], progress=False)


def test_a_certificate_holds_among_what_passes(tmp_path, model, monkeypatch):
    monkeypatch.setattr(surrogate, "_STEPS", 40)
    monkeypatch.setattr(asking, "_WORTH", 0)
    texts = corpus(300)
    fields = [{"part": "most" if i % 5 else "few", "row": i} for i in range(300)]
    index = Index.build(model, texts, tmp_path / "ix", metadata=fields, shard_size=90, dtype="float32", progress=False)
    index.fit_surrogate(texts[::2] + corpus(90), rank=16, progress=False)
    index.append(["quite fresh words"], metadata=[{"part": "most", "row": 300}], progress=False)
    queries = [f"{text} more" for text in texts[1::20]]
    for mode, filters in itertools.product(("iem", "hybrid"), ({"part": "most"}, {"row": {"gte": 299}})):
        exact = index.search(queries, 5, mode=mode, filters=filters, exact=True)
        found = index.search(queries, 5, mode=mode, filters=filters, recall=0.9, explain=True)
        shares = [len({h.id for h in a} & {h.id for h in b}) / len(a) for a, b in zip(exact, found, strict=True)]
        promised = {hit.promised for each in found for hit in each}
        # Of two passages that pass most queries' certified best hold none, which promises nothing: both are scored.
        assert promised == {0.9 if "part" in filters else 1.0} and np.mean(shares) >= 0.9
        assert all(passes(hit.metadata, filters) for each in found for hit in each)
        found = index.search(queries, 5, mode=mode, filters=filters, channels=["surrogate"], explain=True)
        assert {hit.promised for each in found for hit in each} == {None}
        assert all(passes(hit.metadata, filters) for each in found for hit in each)


def test_an_index_of_the_version_before_is_opened_and_given_metadata(index, model):
    body = read_json(index.path / "manifest.json")
    body |= {"version": 2}
    del body["sha256"], body["fields"]
    write_json(index.path / "manifest.json", {**body, "sha256": _digest(body)})
    before = index.search("red", 3)
    old = Index.open(index.path, model, verify=True)
    assert old.search("red", 3) == before
    old.append(["one more"], metadata=[{"year": 2020}], progress=False)
    assert [hit.id for hit in Index.open(index.path, model).search("red", 9, filters={"year": 2020})[0]] == ["50"]


def test_a_column_that_is_cut_altered_or_of_another_kind_is_named(copy):
    path = sorted(copy.path.glob("segments/*/metadata.safetensors"))[0]
    content = path.read_bytes()
    for place in range(0, len(content), len(content) // 9):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        with pytest.raises(FormatError, match=path.name):
            Index.open(copy.path, verify=True)
    path.write_bytes(content[:-1])
    with pytest.raises(FormatError, match=f"{path.name}.*truncated"):
        Index.open(copy.path)
    path.write_bytes(content)
    body = read_json(copy.path / "manifest.json")
    del body["sha256"]
    for fields in ({**body["fields"], "year": "text"}, {"year": "number"}, {**body["fields"], "year": "date"}, []):
        changed_body = body | {"fields": fields}
        write_json(copy.path / "manifest.json", {**changed_body, "sha256": _digest(changed_body)})
        with pytest.raises(FormatError, match="year|fields"):
            Index.open(copy.path)


def test_the_same_build_only_opens_and_other_metadata_is_another(copy, model, texts):
    options = {"shard_size": 25, "dtype": "float32", "progress": False}
    Index.build(model, texts, copy.path, metadata=described(COUNT), **options)
    assert model.encoded == []
    with pytest.raises(InputError, match="holds an index of other content"):
        Index.build(model, texts, copy.path, **options)
    line = json.loads(next(copy.path.glob("segments/*/passages.jsonl")).read_text().splitlines()[0])
    assert line.keys() <= {"id", "text", "metadata"}
