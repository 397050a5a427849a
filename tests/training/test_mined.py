"""Negatives mined from the student in a run: when, from what, and the same ones after a kill."""

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from large_batch_run import Judge, run, run_both_ways
from safetensors.torch import load_file
from training_setup import make_config, make_examples

from d2llm.data.example import Example
from d2llm.data.jsonl import read_examples
from d2llm.errors import InputError, MismatchError
from d2llm.student import D2LLM
from d2llm.training import DistillationTrainer
from d2llm.training.config import MiningConfig, TrainConfig
from d2llm.training.mined import MinedExamples
from d2llm.training.plan import BatchKey
from d2llm.training.run import last_whole
from tests.processes import exit_code, run_two


def unscored() -> list[Example]:
    return [replace(example, scores=None) for example in make_examples()]


def trainer_of(base_model: str, folder: Path, examples: list[Example], **mining: Any) -> DistillationTrainer:
    config: TrainConfig = make_config(base_model, folder, save_steps=8)
    config = replace(config, mining=MiningConfig(**mining))
    return DistillationTrainer(D2LLM.create(base_model, **config.student), config, examples, teacher=Judge())


@pytest.fixture(scope="module")
def whole(base_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 14 steps that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    run(base_model, folder)
    return folder


@pytest.mark.parametrize("kill_at", [5, pytest.param(8, marks=pytest.mark.rest)])
def test_a_killed_run_goes_on_with_the_same_negatives(
    base_model: str, whole: Path, tmp_path: Path, kill_at: int
) -> None:
    killed = tmp_path / "killed"
    assert exit_code(run, base_model, killed, kill_at) == -signal.SIGKILL
    checkpoint = last_whole(killed)
    assert checkpoint is not None and checkpoint.name == f"checkpoint-{kill_at // 4 * 4}"
    written = {path.name: path.stat().st_mtime_ns for path in (killed / "negatives").iterdir()}
    run(base_model, killed, resume=True)
    assert all((killed / "negatives" / name).stat().st_mtime_ns == time for name, time in written.items())
    for number in (1, 2):
        name = f"negatives/round-{number}.jsonl"
        assert (killed / name).read_text() == (whole / name).read_text()
    expected, got = (load_file(folder / "model.safetensors") for folder in (whole, killed))
    for name, value in expected.items():
        assert torch.equal(value, got[name]), name


def test_each_round_is_what_the_student_of_its_time_finds(whole: Path) -> None:
    first, second = (read_examples(whole / f"negatives/round-{number}.jsonl") for number in (1, 2))
    assert [(e.query, e.positive, e.task) for e in first] == [(e.query, e.positive, e.task) for e in unscored()]
    assert first != second
    assert all(len(example.negatives) <= 4 and example.positive not in example.negatives for example in first)
    assert not (whole / "negatives/round-0.jsonl").exists()


def test_rounds_change_at_their_steps(base_model: str, tmp_path: Path) -> None:
    trainer = trainer_of(base_model, tmp_path, unscored(), every_epochs=2, k=3, margin=None)
    examples = trainer.examples
    assert isinstance(examples, MinedExamples) and trainer.plan.updates == 6
    # The fourth example has three negatives of its own, of which a batch takes two.
    assert set(examples[BatchKey(0, 11, 3)].negatives) < set(unscored()[3].negatives)
    assert not (tmp_path / "negatives").exists()
    mined = examples[BatchKey(2, 12, 3)]
    stored = read_examples(tmp_path / "negatives/round-1.jsonl")
    assert len(stored[3].negatives) == 3 and set(mined.negatives) < set(stored[3].negatives)
    nearest = trainer.student.encode([e.positive for e in unscored()], kind="passage", normalize=True)
    query = trainer.student.encode([unscored()[3].query], kind="query", normalize=True)[0]
    order = [unscored()[i].positive for i in (-(nearest @ query)).argsort() if i != 3]
    tight = trainer_of(base_model, tmp_path / "tight", unscored(), every_epochs=2, k=3, top=3, margin=None)
    assert set(tight.examples[BatchKey(2, 12, 3)].negatives) <= set(order[:3])


def test_examples_without_negatives_begin_with_mined_ones(base_model: str, tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("read a file\nwrite a file\n")
    bare = [replace(example, negatives=()) for example in unscored()]
    trainer = trainer_of(base_model, tmp_path, bare, every_steps=3, corpus=str(tmp_path / "corpus.txt"), top=2)
    assert len(trainer.examples[BatchKey(0, 0, 5)].negatives) == 2
    assert (tmp_path / "negatives/round-0.jsonl").exists()
    assert "read a file" in (tmp_path / "negatives/round-0.jsonl").read_text()


def test_a_new_run_does_not_take_over_what_another_left(base_model: str, tmp_path: Path) -> None:
    left = tmp_path / "negatives/round-1.jsonl"
    left.parent.mkdir()
    left.write_text('{"query": "q", "positive": "p"}\n')
    trainer = trainer_of(base_model, tmp_path, unscored(), every_steps=4)
    with pytest.raises(MismatchError, match=r"round-1\.jsonl: expected the pairs of the run's examples"):
        trainer.examples[BatchKey(0, 4, 0)]
    trainer.train()
    assert len(read_examples(left)) == 24


def test_settings_that_cannot_be_met_are_named(base_model: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="mining: expected every_steps or every_epochs"):
        MiningConfig(every_steps=1, every_epochs=1)
    with pytest.raises(InputError, match=r"mining\.k: expected at least 1, got 0"):
        MiningConfig(k=0)
    with pytest.raises(InputError, match="mining: expected examples without scores"):
        trainer_of(base_model, tmp_path, make_examples(), every_steps=4)


# Two processes, rounds and cached gradients have tests of their own; here they meet.
@pytest.mark.rest
def test_two_processes_share_what_is_mined_and_their_gradients(base_model: str, tmp_path: Path) -> None:
    run_two(run_both_ways, base_model, tmp_path)
    plain, cached = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "cached"))
    torch.testing.assert_close(cached, plain, rtol=0, atol=1e-5)
