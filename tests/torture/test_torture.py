"""The campaign at its shortest, in one process: some inputs of every target, and the table that tells of it."""

import multiprocessing
import os
import random
from pathlib import Path

import pytest

from d2llm.index import Index, surrogate
from d2llm_kernels import backends
from tests.index.index_fakes import WordEncoder
from tests.torture import folders, opens, operators, readers, requests, teachers
from tests.torture.power import lose_power
from tests.torture.report import BEGIN, END, update
from tests.torture.tally import Tally
from tests.torture.worker import _Worker, judged

#: Inputs of a target: a student or a teacher takes long to load.
INPUTS = {"students": 5, "indexes": 20, "adapters": 12}


@pytest.fixture(autouse=True)
def brief_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a surrogate finds does not matter here."""
    monkeypatch.setattr(surrogate, "_STEPS", 3)


@pytest.mark.parametrize(
    "module", [readers, folders, teachers, operators, requests], ids=lambda module: module.__name__.rpartition(".")[2]
)
def test_mutated_inputs_are_taken_or_refused(module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if module is operators and backends.missing("cpu"):
        pytest.skip(backends.missing("cpu"))
    monkeypatch.setenv("TORTURE_STUDENT", str(tmp_path / "kept"))
    for name, attempt in module.TARGETS.items():
        verdicts = {number: judged(attempt, number, tmp_path) for number in range(INPUTS.get(name, 40))}
        assert {n: v for n, v in verdicts.items() if v not in ("taken", "refused")} == {}, name
        assert "refused" in verdicts.values() or name in ("vectors", "students"), name


@pytest.mark.parametrize(("name", "writes"), [("index", 3), ("scores", 3), ("mine", 2), ("student", 2)])
def test_a_loss_of_power_leaves_what_was_or_what_was_to_be(name: str, writes: int, tmp_path: Path) -> None:
    tally, before = Tally(name), None
    (tmp_path / name).mkdir()
    for number in range(writes):
        before = lose_power(name, tmp_path / name, before, number, tally)
    assert tally.faults == [] and tally.tried > 10


def test_a_mixture_of_two_generations_would_be_seen(tmp_path: Path) -> None:
    names = ["left-1", "right-1", "left-2", "right-2"]
    index = Index.build(WordEncoder(), ["red", "red", "old", "old"], tmp_path / "ix", ids=names, progress=False)
    assert opens.check(index, -1, texts=True) == opens.check(index, 0, texts=False) == 0
    with pytest.raises(AssertionError, match="generation 0 after 1"):
        opens.check(index, 1, texts=False)
    index.append([("left-1", "new")], upsert=True, progress=False)
    with pytest.raises(AssertionError, match="1 pairs torn"):
        opens.check(index, 0, texts=True)
    index.delete("right-2")
    with pytest.raises(AssertionError, match="1 pairs torn"):
        opens.check(index, 0, texts=False)


def test_a_row_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"above\n{BEGIN}\n{END}\nbelow\n")
    update(page, [Tally("one", 1), Tally("two", 2, 1)], 3, "abc")
    update(page, [Tally("one", 5000, 7, ["a fault"])], 4, "def")
    text = page.read_text()
    assert text.startswith("above\n") and text.endswith("below\n")
    assert (
        text.count("| one |") == 1
        and "| one | 5,000 | 7 | 1 | 4 | def |" in text
        and "| two | 2 | 1 | 0 | 3 | abc |" in text
    )


def test_a_second_run_adds_to_the_first(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"{BEGIN}\n{END}\n")
    update(page, [Tally("one", 1500)], 3, "abc")
    update(page, [Tally("one", 20, 7, ["a fault"])], 4, "abc", add=True)
    update(page, [Tally("one", 1), Tally("two", 2)], 4, "def", add=True)
    text = page.read_text()
    assert "| one | 1,521 | 7 | 1 | 3, 4 | abc, def |" in text and "| two | 2 |  | 0 | 4 | def |" in text


def test_a_worker_that_dies_is_a_fault_and_not_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = iter([lambda: True, lambda: True, lambda: False, lambda: os._exit(3)])
    monkeypatch.setattr("tests.torture.worker.find", lambda _: lambda *_: next(outcomes)())
    worker = _Worker(multiprocessing.get_context("fork"), "any")
    assert [worker.ask(number) for number in range(3)] == ["taken", "refused", "the process died (exit code 3)"]
    assert worker.dead


def test_the_worker_tells_what_should_not_have_been(tmp_path: Path) -> None:
    def fails(generator: random.Random, folder: Path) -> bool:
        raise KeyError(generator.random())

    assert judged(fails, 3, tmp_path).startswith("KeyError: 0.23796462709189137 (")
