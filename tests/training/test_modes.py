"""Each mode of training: what learns, what its folder holds, and that a run goes on where it was."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_setup import make_config, make_examples

from d2llm.data.example import Example
from d2llm.data.jsonl import read_examples, write_examples
from d2llm.errors import InputError
from d2llm.files import read_json
from d2llm.student import D2LLM
from d2llm.training import DistillationTrainer, train
from d2llm.training.config import TrainConfig, build_config

MODES: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]] = {
    "lora": ({}, {}, ("lora_", "pma.", "iem.")),
    "full": ({"lora_r": 0, "train_base": True}, {}, ("backbone.layers.", "pma.", "iem.")),
    "heads": ({"lora_r": 0}, {}, ("pma.", "iem.")),
    "interaction": ({"lora_r": 0}, {"interaction_only": True}, ("iem.",)),
}


@pytest.fixture(scope="module")
def examples_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    write_examples(path, [Example(e.query, e.positive, e.negatives) for e in make_examples()])
    return path


def mode_config(mode: str, base_model: str, examples_file: Path, output: Path, **run: Any) -> TrainConfig:
    student, settings, _ = MODES[mode]
    values = asdict(make_config(base_model, output, patience=None, **settings, **run))
    values["student"] |= student
    # A rate that does not depend on the length of the run.
    values["optimizer"] |= {"schedule": "constant_with_warmup", "base_lr": 1e-3, "lora_lr": 1e-3}
    values["data"] |= {"train": str(examples_file)}
    return build_config(values)


# LoRA is what other tests train, and of the heads alone the interaction module is one.
@pytest.mark.parametrize(
    "mode", ("full", "interaction", *(pytest.param(m, marks=pytest.mark.rest) for m in ("lora", "heads")))
)
def test_a_mode_learns_saves_loads_and_goes_on(mode: str, base_model: str, examples_file: Path, tmp_path: Path) -> None:
    long = mode_config(mode, base_model, examples_file, tmp_path / "whole", max_steps=4)
    train(long)
    train(mode_config(mode, base_model, examples_file, tmp_path / "parts", max_steps=2))
    train(mode_config(mode, base_model, examples_file, tmp_path / "parts", max_steps=4), resume=True)
    whole, parts = (load_file(tmp_path / name / "checkpoint-4" / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())

    start = load_file(tmp_path / "whole" / "checkpoint-0" / "model.safetensors")
    changed = {name for name, value in whole.items() if not torch.equal(value, start[name])}
    learns = MODES[mode][2]
    assert all(any(part in name for name in changed) for part in learns)
    assert all(any(part in name for part in (*learns, "backbone." if mode == "full" else "iem.")) for name in changed)
    base = any(name.startswith("backbone.") and ".lora_" not in name for name in whole)
    assert base == (mode == "full")

    loaded = D2LLM.from_pretrained(tmp_path / "whole" / "checkpoint-4")
    assert all(torch.equal(value, loaded.trainable_state()[name]) for name, value in whole.items())


def test_what_was_held_out_and_what_came_of_it_are_kept(base_model: str, examples_file: Path, tmp_path: Path) -> None:
    train(mode_config("interaction", base_model, examples_file, tmp_path / "run", max_steps=2))
    held = read_examples(tmp_path / "run" / "validation.jsonl")
    assert len(held) == 2 and {e.query for e in held} < {e.query for e in read_examples(examples_file)}
    outcome = read_json(tmp_path / "run" / "outcome.json")
    assert outcome["mrr"] >= outcome["start_mrr"] > 0 and outcome["step"] in (0, 2)


def test_without_validation_the_last_step_remains_and_it_is_said(
    base_model: str, examples_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = asdict(mode_config("heads", base_model, examples_file, tmp_path / "run", max_steps=2))
    values["data"]["validation_share"] = 0.0
    train(build_config(values))
    assert not (tmp_path / "run" / "validation.jsonl").exists()
    said = capsys.readouterr().out
    assert "validation: none" in said and "whether it is better than at its start was not measured" in said


def test_a_base_is_trained_without_lora_and_in_float32(base_model: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="train_base: expected LoRA or a trained base"):
        D2LLM.create(base_model, train_base=True)
    student = D2LLM.create(base_model, lora_r=0, train_base=True, base_dtype="bfloat16")
    with pytest.raises(InputError, match="student.base_dtype: expected float32 where the base is trained"):
        DistillationTrainer(student, make_config(base_model, tmp_path), make_examples())
