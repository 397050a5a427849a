"""A surrogate: its fit, its files, and searches that it chooses candidates for."""

import json
import shutil
import warnings

import numpy as np
import pytest
import torch
from index_fakes import DIM, WordEncoder, corpus, head

from d2llm.errors import FormatError, InputError, MissingError
from d2llm.files import read_json, write_json
from d2llm.index import Index, asking, fitting, searching, surrogate
from d2llm.index import index as face
from d2llm.index.certificate import Certificate
from d2llm.index.manifest import Manifest, _digest
from d2llm_kernels import IEM
from d2llm_kernels.rough import inner

COUNT = 300
QUERIES = ["quite fresh words", "blue item7"]
OPTIONS = {"shard_size": 90, "dtype": "float32", "progress": False}


def asked(count: int) -> np.ndarray:
    return np.random.default_rng(5).standard_normal((count, DIM)).astype(np.float32)


@pytest.fixture(autouse=True, scope="module")
def small():
    """Few steps, and candidates whatever their number."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(surrogate, "_STEPS", 60)
        patch.setattr(surrogate, "_COMMON", 100)
        patch.setattr(asking, "_WORTH", 0)
        yield


@pytest.fixture(name="made", scope="module")
def fixture_made(tmp_path_factory):
    path = tmp_path_factory.mktemp("made") / "ix"
    index = Index.build(WordEncoder(), corpus(COUNT), path, **OPTIONS)
    index.fit_surrogate(corpus(COUNT)[::2] + corpus(90), rank=16, progress=False)
    return path


@pytest.fixture(name="fitted")
def fixture_fitted(made, model, tmp_path) -> Index:
    shutil.copytree(made, tmp_path / "ix")
    return Index.open(tmp_path / "ix", model)


def ids(hits):
    return [[hit.id for hit in row] for row in hits]


def files(index: Index):
    (folder,) = index.path.glob("surrogate-*")
    return sorted(folder.iterdir())


def test_a_fit_orders_as_the_scores_it_is_given(monkeypatch):
    """Scores that a product can reach are found again up to rounding."""
    monkeypatch.setattr(surrogate, "_STEPS", 400)
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, 12, generator=draw) * 3 + 1 for n in (200, 400))
    z = (a - 1) @ torch.randn(12, 12, generator=draw) @ b.T / 12
    maps = surrogate.fit(a[:150], b, z[:150], 16, seed=0)
    scores = inner.products(maps.queries(a[150:]), maps.passages(b))
    chosen, best = scores.topk(30, 1).indices, z[150:].topk(10, 1).indices
    assert (chosen[:, :, None] == best[:, None]).any(1).float().mean() > 0.9
    monkeypatch.setattr(surrogate, "_STEPS", 20)
    one, again = (vars(surrogate.fit(a[:150], b, z[:150], 16, seed=0)).values() for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(one, again, strict=True))


@pytest.mark.parametrize("mode", ["iem", "hybrid"])
def test_a_certified_search_keeps_its_promise(fitted, mode):
    queries = [f"{text} more" for text in corpus(COUNT)[1::9]]
    exact = fitted.search(queries, 5, mode=mode, exact=True, explain=True)
    found = fitted.search(queries, 5, mode=mode, recall=0.9, explain=True)
    assert all("surrogate" in hit.scores for hits in found for hit in hits)
    assert {hit.promised for row in exact for hit in row} == {1.0}
    assert {hit.promised for row in found for hit in row} == {0.9}
    assert all({"surrogate", "bm25"} >= hit.ranks.keys() > set() for row in found for hit in row)
    shares = [len({hit.id for hit in a} & {hit.id for hit in b}) / 5 for a, b in zip(exact, found, strict=True)]
    assert np.mean(shares) >= 0.9
    scores = {hit.id: hit.score for hit in exact[0]}
    assert all(abs(hit.score - scores[hit.id]) < 1e-4 for hit in found[0] if hit.id in scores)


def test_a_search_makes_nothing_ready_twice(fitted, monkeypatch):
    """Neither the module's packed weights nor what the certificate says: both cost as much as a small search."""
    asked = []
    for kind, name in ((IEM, "prepare"), (Certificate, "candidates")):
        original = getattr(kind, name)
        counted = lambda *given, name=name, original=original: asked.append(name) or original(*given)  # noqa: E731
        monkeypatch.setattr(kind, name, counted)
    for _ in range(3):
        fitted.search("red item7", 3, mode="iem", recall=0.9)
    assert sorted(asked) == ["candidates", "prepare"]
    fitted.delete(["7"])
    fitted.search("red item7", 3, mode="iem", recall=0.9)
    assert asked.count("candidates") == 2


def test_what_is_not_certified_is_searched_in_full(fitted, model):
    def promised(**options):
        return fitted.search("red item7", 3, explain=True, **{"mode": "iem", **options})[0][0].promised

    assert promised(recall=0.9) == 0.9
    # 80 queries are too few for 0.99, a hundred and one hits too many; the other branch was not certified.
    assert promised() == 1.0
    assert fitted.search("red", 101, mode="iem", recall=0.9, explain=True)[0][0].promised == 1.0
    assert promised(recall=0.9, task="sym") == 1.0
    assert promised(channels=["surrogate"]) is None
    model.config = type("Config", (), {"bm25_weight": 0.7})()
    assert promised(recall=0.9, mode="hybrid") == 1.0 and promised(recall=0.9) == 0.9


def test_changes_after_the_fit_are_searched(fitted, model):
    fitted.append(["quite fresh words", "fresh again"], ["new", "newer"], progress=False)
    fitted.delete(["7", "290", "newer"])
    for index in (fitted, Index.open(fitted.path, model, verify=True)):
        for mode in ("iem", "hybrid"):
            found = ids(index.search(QUERIES, COUNT, mode=mode, channels=["surrogate"], candidates=COUNT))
            assert all(sorted(row) == sorted(index.ids()) for row in found)
            assert found == ids(index.search(QUERIES, COUNT, mode=mode, exact=True))
        assert index.search("quite fresh words", 1, mode="iem", recall=0.8, explain=True)[0][0].promised == 0.8


def test_vectors_certify_the_interaction_alone(tmp_path):
    vectors = asked(COUNT)
    index = Index.build(head(), None, tmp_path / "v", vectors=vectors, keep_vectors=False, progress=False)
    with pytest.raises(InputError, match="queries: expected some, since this index has no texts"):
        index.fit_surrogate()
    index.fit_surrogate(asked(120), rank=16, progress=False)
    hit = Index.open(index.path).search_vectors(vectors[:1], 3, recall=0.9, explain=True)[0][0]
    assert hit.promised == 0.9 and hit.ranks.keys() == {"surrogate"}


def test_a_large_build_fits_one_and_goes_on_where_it_was_killed(model, tmp_path, monkeypatch):
    monkeypatch.setattr(face, "_LARGE", 100)

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fitting, "write_rows", killed)
        with pytest.raises(KeyboardInterrupt):
            Index.build(model, corpus(COUNT), tmp_path / "ix", **OPTIONS)
    assert Manifest.load(tmp_path / "ix").surrogate is None and not list((tmp_path / "ix").glob("surrogate-*"))
    index = Index.build(model, corpus(COUNT), tmp_path / "ix", queries=corpus(9), **OPTIONS)
    assert index._snapshot.surrogate is not None and len(model.encoded) == COUNT


def test_a_new_fit_replaces_the_old_and_another_build_has_none(fitted, model):
    before = files(fitted)
    # The same maps again: what a reader may be opening is not written over.
    fitted.fit_surrogate(corpus(COUNT)[::2] + corpus(90), rank=16, progress=False)
    assert not before[0].exists()
    before = files(fitted)
    fitted.fit_surrogate(corpus(60), rank=8, progress=False)
    assert not before[0].exists() and len(files(fitted)) == 6
    Index.build(model, corpus(COUNT + 1), fitted.path, overwrite=True, **OPTIONS)
    assert not list(fitted.path.glob("surrogate-*"))


@pytest.mark.parametrize("which", range(6))
def test_a_file_that_is_gone_cut_or_altered_is_named(fitted, which):
    path = files(fitted)[which]
    content = path.read_bytes()
    for place in range(0, len(content), len(content) // 7):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        with pytest.raises(FormatError, match=path.name):
            Index.open(fitted.path, verify=True)
    path.write_bytes(content[:-1])
    with pytest.raises(FormatError, match=f"{path.name}.*truncated"):
        Index.open(fitted.path)
    path.unlink()
    with pytest.raises(MissingError, match=path.name):
        Index.open(fitted.path)


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.update(name="../surrogate-00"),
        lambda r: r.update(name=3),
        lambda r: r.update(files=r["files"][:2]),
        lambda r: r.update(files=r["files"] * 2),
        lambda r: r.update(files=None),
        lambda r: r["files"][2].update(name="segment-0.safetensors"),
        lambda r: r["files"].reverse(),
    ],
)
def test_a_record_that_lies_is_refused(fitted, change):
    body = read_json(fitted.path / "manifest.json")
    body.pop("sha256")
    change(body["surrogate"])
    write_json(fitted.path / "manifest.json", {**body, "sha256": _digest(body)})
    with pytest.raises(FormatError, match="manifest.json: surrogate: .*expected"):
        Index.open(fitted.path)


@pytest.mark.parametrize(
    "options,message",
    [
        ({"queries": ["a"]}, "queries: expected at least 2.*got 1"),
        ({"queries": []}, "queries: expected at least one"),
        ({"queries": asked(9)[:, 1:]}, "queries: expected an array"),
        ({"rank": 0}, "rank: expected an integer, at least 1, got 0"),
        ({"task": "both"}, "task: expected one of"),
        ({"engine": "best"}, "engine: expected one of .*'best'"),
    ],
)
def test_fit_refuses(index, options, message):
    with pytest.raises(InputError, match=message):
        index.fit_surrogate(**options, progress=False)


@pytest.mark.parametrize("recall", [0, 1.1, "most", True, float("nan")])
def test_a_recall_that_is_none_is_refused(index, recall):
    with pytest.raises(InputError, match="recall: expected a number above 0, 1 at most"):
        index.search("red", recall=recall)


def test_a_channel_that_is_not_there_is_named(index):
    with pytest.raises(InputError, match="'surrogate' needs one.*fit_surrogate"):
        index.search("red", channels=["surrogate"])


def test_an_audit_warns_when_the_promise_no_longer_holds(fitted, monkeypatch):
    queries = corpus(COUNT)[:40]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted.search(queries, 5, mode="iem", recall=0.8, audit=1)
    ways = {0.9: (("surrogate",), 5, 0.9), 1: ((), 0, 1.0)}
    monkeypatch.setattr(asking.Asked, "_way", lambda asked, *_: ways[asked.recall])
    with pytest.warns(UserWarning, match="recall: .* finds less than 0.9; call fit_surrogate"):
        fitted.search(queries, 5, mode="iem", recall=0.9, audit=1)


def test_an_engine_that_is_not_installed_is_told_before_any_work(index, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"faiss is not installed.*d2llm\[faiss\]"):
        index.fit_surrogate(engine="ivf", progress=False)


def test_what_is_exported_finds_what_the_channel_finds(fitted, tmp_path):
    fitted.append(["quite fresh words"], ["n\n1"], progress=False)
    fitted.delete(["7"])
    fitted.export_surrogate(tmp_path / "vectors")
    rows = np.load(tmp_path / "vectors" / "vectors.npy")
    names = [json.loads(line) for line in (tmp_path / "vectors" / "ids.jsonl").read_text().splitlines()]
    assert names == fitted.ids() and rows.shape == (COUNT, 16) and rows.dtype == np.int8
    products = fitted.surrogate_queries(fitted.encode_queries(QUERIES)).astype(int) @ rows.astype(int).T
    given = [[names[row] for row in np.argsort(-row, kind="stable")[:9]] for row in products]
    for mode in ("iem", "hybrid"):
        found = fitted.search(QUERIES, 4, mode=mode, given=given, explain=True)
        assert all(hit.promised is None and hit.ranks.keys() == {"given"} for row in found for hit in row)
        exact = fitted.search(QUERIES, COUNT, mode=mode, exact=True)
        for row, every, some in zip(found, exact, given, strict=True):
            assert [hit.id for hit in row] == [hit.id for hit in every if hit.id in some][:4]
    # What is gone, and what does not exist, is left out; none are left at all.
    assert fitted.search("red", given=[["7", "nobody"]]) == [[]] == fitted.search("red", given=[[]])


def test_candidates_that_do_not_fit_are_refused(index):
    for given in ([["1"], ["2"]], "1", [["1", "1"]], [[""]]):
        with pytest.raises(InputError, match=r"given: expected 1 lists|ids\[\d\]: expected"):
            index.search("red", given=given)
    with pytest.raises(InputError, match="given: expected none, since the mode is 'bm25'"):
        index.search("red", mode="bm25", given=[["1"]])
    for export in (lambda: index.export_surrogate("there"), lambda: index.surrogate_queries(asked(1))):
        with pytest.raises(InputError, match="surrogate, got one without; call fit_surrogate"):
            export()


def test_a_certificate_that_was_stopped_goes_on(fitted, monkeypatch):
    """Queries that were searched in full are not searched again, and what comes of it is the same."""
    calls, best = [], searching.Searching.best

    def counted(*given):
        calls.append(1)
        if len(calls) == 41:
            raise KeyboardInterrupt
        return best(*given)

    queries = asked(120)
    with monkeypatch.context() as patch:
        patch.setattr(searching.Searching, "best", counted)
        with pytest.raises(KeyboardInterrupt):
            fitted.fit_surrogate(queries, rank=8, progress=False)
        fitted.fit_surrogate(queries, rank=8, progress=False)
        assert len(calls) == 41 + 60 - 32 and not list(fitted.path.glob("*exact-*"))
    made = fitted._snapshot.surrogate[1].modes["iem"]
    fitted.fit_surrogate(queries, rank=8, progress=False)
    again = fitted._snapshot.surrogate[1].modes["iem"]
    assert torch.equal(made.places, again.places) and torch.equal(made.needed, again.needed)
