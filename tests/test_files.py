import hashlib
import json
import os
import random
import stat
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from d2llm.errors import FormatError, InputError, MissingError
from d2llm.files import atomic_path, read_json, sha256, write_json
from d2llm.tensor_files import write_tensors
from tests.torture.recorder import Disk, recorded


def fill(folder: Path, text: str) -> None:
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "file").write_text(text)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_the_block_ends(tmp_path):
    target = tmp_path / "new" / "folder" / "file.txt"
    with atomic_path(target) as path:
        path.write_text("whole")
        assert not target.exists() and path.suffix == ".txt"
    assert target.read_text() == "whole" and names(target.parent) == ["file.txt"]


def test_files_and_folders_are_replaced_as_a_whole(tmp_path):
    (tmp_path / "file").write_text("old")
    fill(tmp_path / "folder", "old")
    (tmp_path / "folder" / "left over").write_text("old")
    with atomic_path(tmp_path / "file") as path:
        path.write_text("new")
    with atomic_path(tmp_path / "folder") as path:
        fill(path, "new")
    assert (tmp_path / "file").read_text() == "new"
    assert names(tmp_path / "folder") == ["deep"]
    assert (tmp_path / "folder" / "deep" / "file").read_text() == "new"
    # A folder may take a file's place.
    with atomic_path(tmp_path / "file") as path:
        fill(path, "new")
    assert names(tmp_path) == ["file", "folder"] and (tmp_path / "file").is_dir()


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_the_umask_says_who_may_read_what_was_written(tmp_path: Path, umask: int) -> None:
    others = tmp_path / "others"
    others.touch(0o600)
    before = os.umask(umask)
    try:
        for name in ("file.safetensors", "folder"):
            with atomic_path(tmp_path / name) as path:
                file = path / "inner.safetensors" if name == "folder" else path
                file.parent.mkdir(exist_ok=True)
                write_tensors({"a": torch.zeros(1)}, file)
                file.chmod(0o600)
                if name == "folder":
                    (path / "link").symlink_to(others)
    finally:
        os.umask(before)
    written = (tmp_path / "file.safetensors", tmp_path / "folder" / "inner.safetensors")
    assert [stat.S_IMODE(file.stat().st_mode) for file in written] == [0o666 & ~umask] * 2
    assert stat.S_IMODE(others.stat().st_mode) == 0o600, "a file that a link names is not what was written"


def test_a_file_never_replaces_a_folder(tmp_path):
    fill(tmp_path / "folder", "old")
    with pytest.raises(OSError), atomic_path(tmp_path / "folder") as path:
        path.write_text("new")
    assert (tmp_path / "folder" / "deep" / "file").read_text() == "old" and names(tmp_path) == ["folder"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_was_written_outlasts_a_loss_of_power(tmp_path, kind):
    """Its contents, its name, and the names of the folders around it and, of a folder, in it."""
    disk, images = Disk(tmp_path), []
    with (
        recorded(disk, lambda: images.append(disk.after("least", random.Random(0)))),
        atomic_path(tmp_path / "new" / "deep" / "target") as path,
    ):
        if kind == "file":
            path.write_text("whole")
        else:
            fill(path, "whole")
    disk.close()
    inside = "target" if kind == "file" else "target/deep/file"
    assert disk.after("least", random.Random(0))[f"new/deep/{inside}"] == b"whole"
    # The target is never there without what belongs to it.
    assert all(image[f"new/deep/{inside}"] == b"whole" for image in images if "new/deep/target" in image)


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("kind", ["file", "folder", "nothing"])
def test_a_failure_leaves_what_was_there(tmp_path, error, kind):
    fill(tmp_path / "target", "old")
    with pytest.raises(error), atomic_path(tmp_path / "target") as path:
        if kind == "file":
            path.write_text("half")
        elif kind == "folder":
            fill(path, "half")
        raise error
    assert names(tmp_path) == ["target"]
    assert (tmp_path / "target" / "deep" / "file").read_text() == "old"


@pytest.mark.parametrize("error", [OSError("disk"), KeyboardInterrupt()])
@pytest.mark.parametrize("renames_before", [0, 1])
def test_a_failed_rename_puts_the_old_folder_back(tmp_path, monkeypatch, error, renames_before):
    fill(tmp_path / "target", "old")
    rename, calls = os.replace, []

    def failing(source, destination):
        calls.append(source)
        if len(calls) == renames_before + 1:
            raise error
        rename(source, destination)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(type(error)), atomic_path(tmp_path / "target") as path:
        fill(path, "new")
    assert names(tmp_path) == ["target"]
    assert (tmp_path / "target" / "deep" / "file").read_text() == "old"


def test_a_link_is_replaced_and_not_what_it_points_to(tmp_path):
    fill(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("link", "dangling"):
        with atomic_path(tmp_path / name) as path:
            fill(path, "new")
        assert (tmp_path / name / "deep" / "file").read_text() == "new"
    assert (tmp_path / "real" / "deep" / "file").read_text() == "old"


def test_writing_nothing_is_an_error(tmp_path):
    (tmp_path / "target").write_text("old")
    with pytest.raises(MissingError, match="nothing was written"), atomic_path(tmp_path / "target"):
        pass
    assert (tmp_path / "target").read_text() == "old" and names(tmp_path) == ["target"]


@pytest.mark.parametrize("target", [".", "..", "a/..", "/", ""])
def test_targets_without_a_name_are_refused(target):
    with pytest.raises(InputError, match="target: expected"), atomic_path(target):
        raise AssertionError("the block must not run")


def test_two_writers_of_one_target_do_not_meet(tmp_path):
    with atomic_path(tmp_path / "target") as one:
        one.write_text("one")
        with atomic_path(tmp_path / "target") as two:
            assert one != two
            two.write_text("two")
    assert (tmp_path / "target").read_text() == "one" and names(tmp_path) == ["target"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text('aä是\n"\\'),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("aä", max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(json_values)
def test_json_comes_back_as_it_was(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "value.json"
    write_json(path, value)
    assert read_json(path) == value
    assert path.read_text(encoding="utf-8").endswith("\n")


def test_json_errors_name_the_file(tmp_path):
    with pytest.raises(MissingError, match=r"absent\.json: file not found"):
        read_json(tmp_path / "absent.json")
    with pytest.raises(MissingError):
        read_json(tmp_path)
    path = tmp_path / "bad.json"
    for content in (b"", b'{"a": 1', b"\xff\xfe", b"[" * 100_000):
        path.write_bytes(content)
        with pytest.raises(FormatError, match=r"bad\.json: not valid JSON"):
            read_json(path)


def test_what_json_cannot_hold_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "value.json", {"a": "是"})
    with pytest.raises(TypeError):
        write_json(tmp_path / "value.json", {"a": {1, 2}})
    assert json.loads((tmp_path / "value.json").read_text(encoding="utf-8")) == {"a": "是"}
    assert names(tmp_path) == ["value.json"]


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1])
def test_sha256(tmp_path, size):
    content = bytes(i % 251 for i in range(size))
    (tmp_path / "file").write_bytes(content)
    assert sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_sha256_of_nothing(tmp_path):
    with pytest.raises(MissingError, match="absent: file not found"):
        sha256(tmp_path / "absent")
