"""A run that goes on from a student that is there already."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_setup import make_config, make_examples
from typer.testing import CliRunner

from d2llm.cli import app
from d2llm.data.example import Example
from d2llm.data.jsonl import write_examples
from d2llm.errors import D2LLMError, InputError, MismatchError
from d2llm.student import D2LLM
from d2llm.training.config import DataConfig, TrainConfig, build_config
from d2llm.training.run import prepare_folder
from d2llm.training.start import first_student, run_data


@pytest.fixture(scope="module")
def first(base_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student whose weights are all random, in the folder ``first`` beside ``train.jsonl``."""
    folder = tmp_path_factory.mktemp("start")
    write_examples(folder / "train.jsonl", [Example(e.query, e.positive, e.negatives) for e in make_examples()])
    student = D2LLM.create(base_model, lora_r=2, iem_hidden=8, lora_dropout=0.1)
    for value in student.trainable_state().values():
        value.add_(torch.randn(value.shape), alpha=0.05)
    student.save_pretrained(folder / "first")
    return folder / "first"


def test_a_second_run_starts_where_the_first_one_ended(first: Path, tmp_path: Path) -> None:
    settings = f"init_from={first} output_dir={tmp_path} data.train={first.parent / 'train.jsonl'} run.bf16=false"
    command = ["train", *settings.split(), "run.max_steps=2", "run.batch_size=4", "optimizer.warmup_steps=0"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    # Not fitted to the texts anew either: the start is the student that was given.
    given, start, end = (load_file(f / "model.safetensors") for f in (first, tmp_path / "checkpoint-0", tmp_path))
    assert all(torch.equal(value, start[name]) for name, value in given.items())
    after = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    assert not any(torch.equal(value, given[name]) for name, value in after.items() if "lora_" in name)
    assert end.keys() == given.keys()
    again = CliRunner().invoke(app, [*command, "--resume"])
    assert again.exit_code == 0, again.output


def going_on(first: Path, output: Path, **changes: object) -> TrainConfig:
    values = asdict(make_config("unused", output)) | {"base_model": None, "init_from": str(first), "student": {}}
    return build_config(values | changes)


def test_what_an_architecture_leaves_open_may_differ(first: Path, tmp_path: Path) -> None:
    fields = {"iem_hidden": 8, "lora_r": 2, "lora_dropout": 0.0, "query_length": 7}
    student = first_student(going_on(first, tmp_path, student=fields))
    assert student.config.lora_dropout == 0 and student.config.query_length == 7
    assert student.config.passage_length == 250


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"student": {"iem_hidden": 16}},
            r"student\.iem_hidden: expected 8, which the student .* got 16; leave it out",
        ),
        ({"student": {"lora_r": 0, "train_base": True}}, r"student\.lora_r: expected 2"),
        ({"student": {"num_layers": 2}}, r"student\.num_layers: expected None"),
        ({"base_model": "another"}, "base_model: expected '/.*', which the student .* got 'another'"),
        ({"init_from": "absent"}, "absent: no such folder"),
    ],
)
def test_another_architecture_is_refused(first: Path, tmp_path: Path, changes: dict[str, object], reason: str) -> None:
    with pytest.raises(D2LLMError, match=reason):
        first_student(going_on(first, tmp_path, **changes))


def test_a_run_needs_something_to_start_from_and_a_folder_of_its_own(first: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="base_model: expected a decoder to start from, or a student as init_from"):
        going_on(first, tmp_path, init_from=None)
    with pytest.raises(InputError, match="holds a student and no checkpoint to go on from; name another folder"):
        prepare_folder(going_on(first, first), resume=True)


def test_validation_queries_that_are_trained_on_are_told(first: Path, tmp_path: Path) -> None:
    examples, file = make_examples(), tmp_path / "validation.jsonl"
    write_examples(file, [examples[0], Example("  open  the socket", "another passage"), Example("unseen", "q")])
    told = run_data(examples, DataConfig(validation=str(file)), 0).told
    assert "3 examples of" in told and "2 of their queries are trained on too" in told


def test_a_run_is_resumed_from_the_student_that_it_began_with(first: Path, tmp_path: Path) -> None:
    config = going_on(first, tmp_path)
    prepare_folder(config, resume=False)
    first_student(config).save_pretrained(tmp_path / "checkpoint-2")
    (tmp_path / "checkpoint-2" / "trainer_state.json").write_text("{}")
    with pytest.raises(MismatchError, match="init_from: expected"):
        prepare_folder(replace(config, init_from="another"), resume=True)
