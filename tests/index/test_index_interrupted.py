import resource
import signal
import time
from pathlib import Path

import pytest
from index_fakes import WordEncoder, corpus

from d2llm.errors import InputError, MissingError
from d2llm.index import Index, writer
from d2llm.index.writer import write_lock
from tests.processes import started


class Slow(WordEncoder):
    def encode(self, texts, **options):
        time.sleep(0.1)
        return super().encode(texts, **options)


def build_slowly(path: Path, log: Path) -> None:
    """In a process of its own."""
    Index.build(Slow(log=log), iter(corpus(400)), path, shard_size=10, progress=False)


def finished(path: Path) -> int:
    return len(list(path.glob("segments/segment-*")))


def test_killed_build_repeats_no_finished_shard(tmp_path):
    path, log = tmp_path / "ix", tmp_path / "log"
    process = started(build_slowly, path, log)
    while finished(path) < 4 and process.is_alive():
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    done = finished(path)
    with pytest.raises(MissingError, match="build has not finished"):
        Index.open(path)
    model = WordEncoder()
    index = Index.build(model, iter(corpus(400)), path, shard_size=10, progress=False)
    assert model.encoded == corpus(400)[10 * done :]
    assert 4 <= done < 40
    # At most the shard under work was encoded twice.
    assert len(log.read_text().splitlines()) + len(model.encoded) <= 410
    index.verify()
    assert finished(path) == 40 and len(index) == 400
    assert not [p for p in (path / "segments").iterdir() if p.name.startswith(".")]


def test_interrupt_keeps_what_was_finished(tmp_path):
    class Interrupted(WordEncoder):
        def encode(self, texts, **options):
            if len(self.encoded) == 20:
                raise KeyboardInterrupt
            return super().encode(texts, **options)

    with pytest.raises(KeyboardInterrupt):
        Index.build(Interrupted(), corpus(50), tmp_path / "ix", shard_size=10, progress=False)
    model = WordEncoder()
    Index.build(model, corpus(50), tmp_path / "ix", shard_size=10, progress=False)
    assert model.encoded == corpus(50)[20:]


def test_a_damaged_leftover_is_made_again(tmp_path, monkeypatch, model):
    monkeypatch.setattr(writer, "collect", lambda *_: None)
    index = Index.build(model, corpus(50), tmp_path / "ix", shard_size=10, progress=False)
    (index.path / "manifest.json").unlink()
    victim = sorted((index.path / "segments").iterdir())[2] / "vectors.safetensors"
    victim.write_bytes(victim.read_bytes()[:-3])
    again = WordEncoder()
    Index.build(again, corpus(50), index.path, shard_size=10, progress=False).verify()
    assert len(again.encoded) == 10


class Filling(WordEncoder):
    """From the fourth shard of 20 on, the system refuses to let files grow beyond ``room`` bytes."""

    room = 0

    def encode(self, texts, **options):
        if len(self.encoded) == 60:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.room, resource.RLIM_INFINITY))
        return super().encode(texts, **options)


@pytest.fixture
def filling():
    # CPython ignores SIGXFSZ, so a file at its limit gives OSError as a full disk does.
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield Filling()
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)


def free_space() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@pytest.mark.parametrize(("room", "kept"), [(0, 3), (100, 3), (1500, 3), (2500, 5)])
def test_full_disk_loses_nothing_written(tmp_path, filling, room, kept):
    """With little room a shard fails, with more of it the manifest."""
    path, filling.room = tmp_path / "ix", room
    with pytest.raises(OSError, match="finished shards are kept" if kept < 5 else "File too large"):
        Index.build(filling, corpus(100), path, shard_size=20, progress=False)
    free_space()
    assert finished(path) == kept and not (path / "manifest.json").exists()
    model = WordEncoder()
    Index.build(model, corpus(100), path, shard_size=20, progress=False).verify()
    assert model.encoded == corpus(100)[20 * kept :]


@pytest.mark.parametrize("change", ["append", "delete"])
def test_full_disk_leaves_the_old_index(model, index, filling, change):
    before, filling.room = index.search("red item3", 50), 300
    with pytest.raises(OSError):
        if change == "append":
            Index.open(index.path, filling).append(corpus(150)[50:], shard_size=20, progress=False)
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (filling.room, resource.RLIM_INFINITY))
            index.delete("3")
    free_space()
    now = Index.open(index.path, model, verify=True)
    assert len(now) == 50 and now.search("red item3", 50) == before
    now.append(corpus(150)[50:], shard_size=20, progress=False)
    now.delete("3")
    assert len(model.encoded) == (50 + 40 if change == "append" else 150) and len(now) == 149


def test_the_same_build_only_opens(model, index):
    count = len(model.encoded)
    again = Index.build(model, corpus(50), index.path, shard_size=16, dtype="float32", progress=False)
    assert len(model.encoded) == count and len(again) == 50


def test_other_content_needs_overwrite_and_reuses_equal_shards(model, index):
    texts = corpus(50)
    texts[40] = "a changed passage"
    options = {"shard_size": 16, "dtype": "float32", "progress": False}
    with pytest.raises(InputError, match="overwrite=True"):
        Index.build(model, texts, index.path, **options)
    model.encoded.clear()
    replaced = Index.build(model, texts, index.path, overwrite=True, **options)
    assert model.encoded == texts[32:48]
    assert replaced.search("changed", 1, mode="bm25")[0][0].id == "40"


def test_one_writer_at_a_time(model, index):
    with write_lock(index.path):
        for write in (lambda: index.delete("1"), lambda: index.append(["more"])):
            with pytest.raises(InputError, match="being written by another process"):
                write()
    index.delete("1")
    assert len(index) == 49
