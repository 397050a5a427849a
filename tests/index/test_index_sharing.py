"""An index whose segments several processes encode is the one that a single process builds."""

import time
from pathlib import Path

import pytest
from index_fakes import WordEncoder, corpus

from d2llm.errors import InputError
from d2llm.index import Index, build_share
from d2llm.index.writer import share_lock, write_lock
from tests.processes import started


def build_one_of_two(path: Path, number: int, log: Path) -> None:
    """In a process of its own: build a share once the other process is there."""
    path.with_name(f"started-{number}").touch()
    while not path.with_name(f"started-{1 - number}").exists():
        time.sleep(0.01)
    build_share(WordEncoder(log=log), iter(corpus(45)), path, (number, 2), shard_size=10, progress=False)


def files(path: Path) -> dict[str, bytes]:
    found = [each for each in path.rglob("*") if each.is_file() and not each.name.endswith("lock")]
    return {str(each.relative_to(path)): each.read_bytes() for each in found}


def test_two_processes_make_what_one_makes(tmp_path):
    path, logs = tmp_path / "ix", [tmp_path / "log-0", tmp_path / "log-1"]
    processes = [started(build_one_of_two, path, number, log) for number, log in enumerate(logs)]
    for process in processes:
        process.join(300)
        assert process.exitcode == 0
    texts = corpus(45)
    assert logs[0].read_text().splitlines() == texts[:10] + texts[20:30] + texts[40:]
    assert logs[1].read_text().splitlines() == texts[10:20] + texts[30:40]
    model = WordEncoder()
    joined = Index.build(model, iter(texts), path, shard_size=10, progress=False)
    assert model.encoded == [] and len(joined) == 45
    Index.build(model, texts, tmp_path / "alone", shard_size=10, progress=False)
    assert files(path) == files(tmp_path / "alone")


def test_what_a_share_lacks_is_encoded_by_the_build(tmp_path):
    model, path = WordEncoder(), tmp_path / "ix"
    assert build_share(model, corpus(30), path, (1, 3), shard_size=10, progress=False) == 10
    model.encoded.clear()
    assert build_share(model, corpus(30), path, (1, 3), shard_size=10, progress=False) == 10
    assert model.encoded == []
    Index.build(model, corpus(30), path, shard_size=10, progress=False)
    assert model.encoded == corpus(30)[:10] + corpus(30)[20:]
    # The finished index has every share; another corpus is refused.
    assert build_share(model, corpus(30), path, (0, 3), shard_size=10, progress=False) == 10
    with pytest.raises(InputError, match="holds an index of other content"):
        build_share(model, corpus(20), path, (0, 3), shard_size=10, progress=False)


def test_shares_are_written_beside_each_other_and_not_beside_the_index(tmp_path):
    def refused(lock):
        with pytest.raises(InputError, match="is being written by another process"), lock:
            pass

    with share_lock(tmp_path, (0, 2)), share_lock(tmp_path, (1, 2)):
        refused(share_lock(tmp_path, (0, 2)))
        refused(write_lock(tmp_path))
    with write_lock(tmp_path), pytest.MonkeyPatch.context() as patch:
        patch.setattr("d2llm.index.writer._PATIENCE", 0.1)
        refused(share_lock(tmp_path, (0, 2)))


@pytest.mark.parametrize("share", [(2, 2), (-1, 2), (0, 0)])
def test_a_share_is_one_of_all(tmp_path, share):
    with pytest.raises(InputError, match="share: expected"):
        build_share(WordEncoder(), corpus(3), tmp_path, share)
