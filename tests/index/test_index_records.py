"""Records of an index that lie, flips in its small files, scratch of killed writers, readers beside a writer."""

import json
from dataclasses import asdict

import pytest
from index_fakes import corpus

from d2llm.errors import FormatError
from d2llm.files import json_text, read_json, write_json
from d2llm.index import Index, snapshot
from d2llm.index.manifest import Manifest, _digest


def rewrite(path, change):
    """Change the manifest and sign it again, as somebody would who means harm."""
    body = read_json(path / "manifest.json")
    body.pop("sha256")
    change(body)
    write_json(path / "manifest.json", {**body, "sha256": _digest(body)})


@pytest.fixture(name="whole")
def fixture_whole(index):
    index.delete(["4", "20"])
    return index


BAD_NAMES = ("../other/deleted-000001.safetensors", "/etc/passwd", "", "..", "a/b", "deleted-1", 7, None)


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize("which", ("head", "deleted", "segment", "file"))
def test_a_name_that_is_not_a_plain_one_is_refused(whole, which, name):
    def change(body):
        record = {"head": body["head"], "deleted": body["deleted"], "segment": body["segments"][0]}.get(which)
        (body["segments"][0]["files"][1] if record is None else record)["name"] = name

    rewrite(whole.path, change)
    with pytest.raises(FormatError, match="name: expected"):
        Index.open(whole.path, verify=True)


@pytest.mark.parametrize(
    "field,value",
    [
        ("generation", "1"),
        ("generation", -1),
        ("dim", None),
        ("hidden", 16.0),
        ("dtype", ["float32"]),
        ("dtype", "float64"),
        ("texts", 1),
        ("unit", "yes"),
        ("model", 3),
        ("head", []),
        ("head", {"name": "head-0.safetensors"}),
        ("segments", {}),
        ("segments", [1]),
        ("segments", [{"name": "segment-0", "rows": 1}]),
        ("deleted", 5),
        ("surplus", 5),
    ],
)
def test_a_manifest_with_another_type_of_field_is_refused_by_name(whole, field, value):
    rewrite(whole.path, lambda body: body.update({field: value}))
    with pytest.raises(FormatError, match=f"manifest.json.*{field}"):
        Index.open(whole.path)


@pytest.mark.parametrize("field", [name for name in Manifest.__dataclass_fields__])
def test_a_manifest_without_a_field_is_refused_by_name(whole, field):
    rewrite(whole.path, lambda body: body.pop(field))
    with pytest.raises(FormatError, match=f"manifest.json.*{field}"):
        Index.open(whole.path)


@pytest.mark.parametrize("pattern", ("head-*", "deleted-*", "segments/*/segment.json"))
def test_any_flip_in_a_small_file_is_found_at_open(whole, pattern):
    path = next(whole.path.glob(pattern))
    content = path.read_bytes()
    for place in range(0, len(content), max(1, len(content) // 40)):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        with pytest.raises(FormatError, match=path.name):
            Index.open(whole.path)
    path.write_bytes(content)
    Index.open(whole.path)


@pytest.mark.parametrize(
    "change", ({"rows": 99}, {"rows": 2**70}, {"name": "segment-00"}, {"name": ".."}, {"files": []})
)
def test_a_finished_segment_with_another_record_is_made_again(model, tmp_path, monkeypatch, change):
    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            Index.build(model, corpus(20), tmp_path, shard_size=16, progress=False)
    path = sorted(tmp_path.glob("segments/*/segment.json"))[0]
    path.write_text(json_text(read_json(path) | change))
    whole = Index.build(model, corpus(20), tmp_path, shard_size=16, progress=False, overwrite=True)
    assert len(whole) == 20 and len(Index.open(tmp_path, verify=True).ids()) == 20


def test_scratch_of_killed_writers_is_removed_by_the_next_write(whole):
    scratch = [whole.path / name for name in (".manifest.json.ab", ".deleted-000001.safetensors.cd", ".head-e.f")]
    for folder in scratch:
        folder.mkdir()
        (folder / "part").write_text("")
    whole.append(["one more text"], progress=False)
    assert not any(folder.exists() for folder in scratch) and len(whole) == 49


def test_a_reader_beside_a_writer_looks_again_at_what_was_replaced(whole, monkeypatch):
    """Between the manifest and the files that it names a writer puts another state."""
    writer, original, moved = Index.open(whole.path), Manifest.load.__func__, []

    def load(cls, root):
        manifest = original(cls, root)
        if not moved and not writing:
            moved.append(manifest.generation)
            writing.append(True)
            writer.delete([writer.ids()[0]])
            writing.clear()
        return manifest

    writing: list[bool] = []
    for read in (lambda: Index.open(whole.path), whole.verify, lambda: snapshot.Snapshot.open(whole.path)):
        moved.clear()
        with monkeypatch.context() as patch:
            patch.setattr(Manifest, "load", classmethod(load))
            read()
        assert moved


def test_records_are_written_as_they_are_compared(whole):
    manifest = Manifest.load(whole.path)
    for record in manifest.segments:
        assert json.loads(json_text(asdict(record)))["name"] == record.name
        record.check_copy(whole.path / "segments")
