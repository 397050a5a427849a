import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from index_fakes import WordEncoder

from d2llm.errors import FormatError, InputError, MismatchError, MissingError
from d2llm.index import Index


def files(index: Index) -> list[Path]:
    """One of each kind of file that the manifest records."""
    segment = sorted((index.path / "segments").iterdir())[1]
    kinds = [segment / name for name in ("vectors.safetensors", "passages.jsonl", "lookup.safetensors")]
    return kinds + list(index.path.glob("head-*")) + list(index.path.glob("deleted-*"))


@pytest.fixture
def whole(index: Index) -> Index:
    index.delete(["4", "20"])
    assert len(files(index)) == 5
    return index


@pytest.mark.parametrize("which", range(5))
def test_truncated_file_is_named_at_open(whole, which):
    path = files(whole)[which]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FormatError, match=f"{path.name}: expected .* bytes, got .*truncated"):
        Index.open(whole.path)


@pytest.mark.parametrize("which", range(5))
def test_missing_file_is_named_at_open(whole, which):
    path = files(whole)[which]
    path.unlink()
    with pytest.raises(MissingError, match=f"{path.name}: file not found"):
        Index.open(whole.path)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(which=st.integers(0, 4), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_is_found_by_verify(whole, which, place, bit):
    path = files(whole)[which]
    content = path.read_bytes()
    changed = bytearray(content)
    changed[int(place * len(content))] ^= 1 << bit
    path.write_bytes(changed)
    try:
        with pytest.raises(FormatError, match=path.name):
            Index.open(whole.path, verify=True)
    finally:
        path.write_bytes(content)
    Index.open(whole.path, verify=True)


def test_altered_header_is_found_at_open(whole):
    path = files(whole)[0]
    content = bytearray(path.read_bytes())
    content[9:12] = b"\xff\xff\xff"
    path.write_bytes(content)
    with pytest.raises(FormatError, match="vectors.safetensors"):
        Index.open(whole.path)


def test_damaged_text_is_named_when_read(whole):
    path = sorted((whole.path / "segments").iterdir())[0] / "passages.jsonl"
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(FormatError, match="passages.jsonl: line 1 is damaged"):
        Index.open(whole.path).ids()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m | {"dim": 64}, "altered"),
        (lambda m: m | {"version": 5}, "a version from 1 to 4, got 5"),
        (lambda m: {"hello": 1}, "expected the format 'd2llm-index'"),
        (lambda m: [m], "expected the format 'd2llm-index'"),
    ],
)
def test_foreign_manifest(whole, change, message):
    path = whole.path / "manifest.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(FormatError, match=f"manifest.json: .*{message}"):
        Index.open(whole.path)


def test_truncated_manifest(whole, model):
    path = whole.path / "manifest.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(FormatError, match="manifest.json: not valid JSON"):
        Index.open(whole.path)
    with pytest.raises(FormatError, match="manifest.json: not valid JSON"):
        Index.build(model, ["a text"], whole.path, progress=False)
    assert len(Index.build(model, ["a text"], whole.path, overwrite=True, progress=False)) == 1


def test_no_index_at_all(tmp_path):
    with pytest.raises(MissingError, match="is no index"):
        Index.open(tmp_path / "nothing")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="path: expected a folder"):
        Index.build(WordEncoder(), ["a"], tmp_path / "file", progress=False)


def test_another_model_is_refused(whole):
    with pytest.raises(MismatchError, match="built with words-0, got words-1"):
        Index.open(whole.path, WordEncoder(1))


def test_rebuilt_with_another_model_behind_an_open_index(whole):
    Index.build(WordEncoder(1), ["only text"], whole.path, overwrite=True, progress=False)
    with pytest.raises(MismatchError, match="rebuilt with another model"):
        whole.append(["more"], progress=False)


def test_an_index_can_be_moved(whole, model, tmp_path):
    before = whole.search("old", 5)
    shutil.move(whole.path, tmp_path / "elsewhere")
    assert Index.open(tmp_path / "elsewhere", model, verify=True).search("old", 5) == before
