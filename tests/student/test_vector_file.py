"""Embeddings in a file: those of memory, whole or not there, and taken up after a kill."""

import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock

from d2llm import texts as texts_module
from d2llm.errors import InputError
from d2llm.student import D2LLM
from d2llm.student.vector_file import VectorFile
from tests.processes import started

TEXTS = [f"{verb} the file of {thing}" for verb in ("open", "read", "close") for thing in ("a", "b c", "x y z", "z")]


def encode_slowly(base_model: str, out: Path) -> None:
    """In a process of its own."""
    texts_module._TOKENIZE_CHUNK, whole = 2, D2LLM.embed

    def slow(*arguments: object) -> torch.Tensor:
        time.sleep(0.2)
        return whole(*arguments)

    D2LLM.embed = slow
    D2LLM.create(base_model, lora_r=2, iem_hidden=8).encode(TEXTS, out=out)


@pytest.fixture(scope="module")
def student(base_model: str) -> D2LLM:
    return D2LLM.create(base_model, lora_r=2, iem_hidden=8)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts_module, "_TOKENIZE_CHUNK", 2)


def encoded_now(student: D2LLM, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Texts of each batch from here on."""
    rows, embed = [], D2LLM.embed

    def counted(self: D2LLM, tokens: torch.Tensor, *rest: object) -> torch.Tensor:
        rows.append(len(tokens))
        return embed(self, tokens, *rest)

    monkeypatch.setattr(D2LLM, "embed", counted)
    return rows


def test_a_file_holds_what_memory_would(student: D2LLM, tmp_path: Path) -> None:
    found = student.encode(TEXTS, out=tmp_path / "vectors.npy", normalize=True)
    assert isinstance(found, np.memmap)
    np.testing.assert_array_equal(found, student.encode(TEXTS, normalize=True))
    np.testing.assert_array_equal(np.load(tmp_path / "vectors.npy"), found)
    assert not list(tmp_path.glob("*.partial"))


def test_a_finished_file_is_read_and_another_input_makes_it_again(
    student: D2LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "vectors.npy"
    student.encode(TEXTS, out=out)
    rows = encoded_now(student, monkeypatch)
    student.encode(TEXTS, out=out)
    assert rows == []
    found = student.encode(TEXTS[::-1], out=out)
    assert sum(rows) == len(TEXTS)
    np.testing.assert_array_equal(found, student.encode(TEXTS[::-1]))


def test_a_killed_run_goes_on_where_it_stopped(
    student: D2LLM, base_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "vectors.npy"
    process = started(encode_slowly, base_model, out)
    while not (tmp_path / "vectors.npy.json").exists() and process.is_alive():
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL and not out.exists()
    rows = encoded_now(student, monkeypatch)
    found = student.encode(TEXTS, out=out)
    assert 0 < sum(rows) < len(TEXTS)
    np.testing.assert_array_equal(found, student.encode(TEXTS))


def test_what_a_stop_left_of_other_rows_is_not_taken_up(tmp_path: Path) -> None:
    out, rows = tmp_path / "v.npy", torch.arange(6.0).reshape(3, 2)
    with pytest.raises(KeyboardInterrupt), VectorFile(out, (3, 2), "one") as file:
        file.write(0, rows[:2])
        raise KeyboardInterrupt
    assert not out.exists()
    with VectorFile(out, (3, 2), "one") as file:
        assert file.done == 2
        file.write(2, rows[2:])
    np.testing.assert_array_equal(file.read(), rows)
    for shape, key in (((3, 2), "other"), ((4, 2), "one")):
        with pytest.raises(KeyboardInterrupt), VectorFile(out, shape, key) as file:
            assert file.done == 0
            raise KeyboardInterrupt
        np.testing.assert_array_equal(np.load(out), rows)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        # Found by the campaign: numpy makes tokens of a header, and fails at some with an error of its own.
        (".v.npy.partial", lambda content: content[:40] + b"[" * 20 + content[60:]),
        (".v.npy.partial", lambda content: content.replace(b"<f4", b"<f2")),
        (".v.npy.partial", lambda content: content[:-1]),
        ("v.npy.json", lambda content: content.replace(b"2", b"-2")),
        ("v.npy.json", lambda content: content.replace(b"2", b"4")),
        ("v.npy.json", lambda content: content.replace(b"2", b"1e999")),
        ("v.npy.json", lambda content: content.replace(b"2", b"true")),
    ],
)
def test_what_is_altered_is_made_again(tmp_path: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    rows = torch.arange(6.0).reshape(3, 2)
    with pytest.raises(KeyboardInterrupt), VectorFile(tmp_path / "v.npy", (3, 2), "one") as file:
        file.write(0, rows[:2])
        raise KeyboardInterrupt
    (tmp_path / name).write_bytes(change((tmp_path / name).read_bytes()))
    with VectorFile(tmp_path / "v.npy", (3, 2), "one") as file:
        assert file.done == 0
        file.write(0, rows)
    np.testing.assert_array_equal(file.read(), rows)


def test_bad_files_are_named(student: D2LLM, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"out: expected the name of an \.npy file"):
        student.encode(["read"], out=tmp_path / "vectors")
    with pytest.raises(InputError, match="convert_to: expected 'numpy' beside out"):
        student.encode(["read"], out=tmp_path / "v.npy", convert_to="torch")
    with FileLock(tmp_path / ".v.npy.lock"), pytest.raises(InputError, match="written by another process"):
        student.encode(["read"], out=tmp_path / "v.npy")
