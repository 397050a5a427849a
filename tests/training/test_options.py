"""Options of transformers' Trainer that a configuration passes through, and those that cannot work here."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from training_setup import make_config, make_examples

from d2llm.errors import D2LLMError
from d2llm.student import D2LLM
from d2llm.training import DistillationTrainer
from d2llm.training.arguments import REPORTERS, training_arguments
from d2llm.training.config import OptimizerConfig, TrainConfig


def trainer_of(config: TrainConfig, base_model: str) -> DistillationTrainer:
    return DistillationTrainer(D2LLM.create(base_model, **config.student), config, make_examples())


def test_workers_make_the_same_batches(base_model: str, tmp_path: Path) -> None:
    found = []
    for workers in (0, 2):
        trainer = trainer_of(make_config(base_model, tmp_path / str(workers), max_steps=2, workers=workers), base_model)
        trainer.train()
        found.append(trainer.student.trainable_state())
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


@pytest.mark.parametrize(("name", "kind"), [("sgd", "SGD"), ("adafactor", "Adafactor"), ("adamw_torch", "AdamW")])
def test_an_optimizer_by_name_has_a_rate_for_each_part(base_model: str, tmp_path: Path, name: str, kind: str) -> None:
    config = replace(make_config(base_model, tmp_path), optimizer=OptimizerConfig(lr=1e-3, lora_lr=2e-3, name=name))
    optimizer = trainer_of(config, base_model).create_optimizer()
    assert type(optimizer).__name__ == kind and {group["lr"] for group in optimizer.param_groups} == {1e-3, 2e-3}
    if name == "adamw_torch":
        assert optimizer.defaults["betas"] == (0.8, 0.999) and optimizer.defaults["eps"] == 1e-6


def test_where_the_log_goes(base_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name in REPORTERS)
    for asked, expected in (
        ("auto", ["tensorboard"]),
        ("none", []),
        ("wandb", ["wandb"]),
        ([*REPORTERS], [*REPORTERS]),
    ):
        assert training_arguments(make_config(base_model, tmp_path, report_to=asked), False).report_to == expected


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ({"fp16": True}, "run.fp16: expected a GPU, found none; set run.bf16=true"),
        ({"fp16": True, "bf16": True}, "run.fp16, bf16: expected one of them, got both"),
        ({"workers": -1}, "run.workers: expected at least 0"),
        ({"workers": 1, "interaction_only": True}, "run.workers: expected 0 with run.interaction_only"),
        ({"report_to": "mlflow"}, "run.report_to: expected auto, none or some of tensorboard, wandb, got 'mlflow'"),
        ({"report_to": ["wandb"]}, "wandb is not installed; try: pip install wandb"),
        ({"deepspeed": "zero2.json"}, "DeepSpeed is not installed; try: pip install deepspeed"),
        ({"deepspeed": "zero2.json", "fsdp": {}}, "run.fsdp, deepspeed: expected one of them"),
    ],
)
def test_what_cannot_work_is_refused(
    base_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(D2LLMError, match=message):
        training_arguments(make_config(base_model, tmp_path, **run), evaluates=False)


@pytest.mark.parametrize(
    ("name", "message"), [("lomo", "expected one that needs|install"), ("fast", "one of adamw_torch")]
)
def test_optimizers_that_cannot_be_made_are_refused(base_model: str, tmp_path: Path, name: str, message: str) -> None:
    config = replace(make_config(base_model, tmp_path), optimizer=OptimizerConfig(name=name))
    with pytest.raises(D2LLMError, match=f"optimizer.name: .*({message})"):
        trainer_of(config, base_model)
