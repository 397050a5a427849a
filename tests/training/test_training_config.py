"""Configurations come from YAML and overrides, and errors name the field."""

from dataclasses import asdict
from pathlib import Path

import pytest

from d2llm.errors import FormatError, InputError, MissingError
from d2llm.training.config import TrainConfig, build_config, load_config

REQUIRED = ["base_model=m", "output_dir=o"]


def test_defaults() -> None:
    config = load_config(overrides=REQUIRED)
    assert config == TrainConfig("o", "m")
    # Those of the authors' run, but for what does damage: 1/B², a warm-up of 1000 steps, one rate for all.
    assert config.optimizer.betas == (0.8, 0.999) and config.optimizer.warmup == 0.1
    assert config.loss.in_batch_form == "mean" and config.data.validation_share == 0.1
    assert (config.run.batch_size, config.data.negatives, config.run.epochs, config.run.patience) == (32, 8, 5, 5)
    assert (config.loss.alpha, config.loss.beta, config.loss.gamma, config.loss.eta) == (1, 1, 0.01, 0.001)


def test_yaml_then_overrides(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("base_model: m\noutput_dir: o\nstudent: {lora_r: 16}\noptimizer: {lr: 1e-3, betas: [0.9, 0.99]}\n")
    changes = ["student.lora_r=4", "student.lora_dropout=0", "run.max_steps=7", "run.patience=null", "loss.gamma=0"]
    config = load_config(file, changes)
    assert config.student == {"lora_r": 4, "lora_dropout": 0.0}
    assert config.optimizer.lr == 1e-3 and config.optimizer.betas == (0.9, 0.99)
    assert config.run.max_steps == 7 and config.run.patience is None and config.loss.gamma == 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.batchsize=3", "run.batchsize: unknown field; expected one of batch_size"),
        ("student.rank=3", "student.rank: unknown field"),
        ("student.base_model=x", "student.base_model: unknown field"),
        ("nothing=1", "nothing: unknown field"),
        ("run.batch_size=many", "run.batch_size: expected int, got 'many'"),
        ("run.batch_size=true", "run.batch_size: expected int, got True"),
        ("run.bf16=1", "run.bf16: expected bool, got 1"),
        ("optimizer.lr=fast", "optimizer.lr: expected float, got 'fast'"),
        ("optimizer.betas=[0.9]", "optimizer.betas: expected"),
        ("student.lora_r=x", "student.lora_r: expected int"),
        ("run=3", "run: expected a mapping"),
        ("base_model.x=3", "base_model is a value"),
        ("run.batch_size", "override: expected name=value"),
        ("=3", "override: expected name=value"),
        ("run.batch_size=0", "run.batch_size: expected at least 1"),
        ("run.epochs=0", "run.epochs: expected a positive number, got 0"),
        ("optimizer.lr=-1", "optimizer.lr: expected a positive number"),
        ("optimizer.lora_lr=0", "optimizer.lora_lr: expected a positive number"),
        ("optimizer.warmup_ratio=1", r"optimizer.warmup_ratio: expected a share of the run in \[0, 1\), got 1.0"),
        ("optimizer.warmup_steps=-1", "optimizer.warmup_steps: expected at least 0"),
        ("data.validation_share=1", r"data.validation_share: expected a share in \[0, 1\)"),
        ("loss.in_batch_form=sum", "in_batch_form: expected one of"),
        ("loss.temperature=0", "temperature: expected a positive number"),
        ("data.negatives=-1", "data.negatives"),
        ("data.false_negative_filter=bm25", "data.false_negative_filter: expected one of teacher, cosine or null"),
        ("data.false_negative_margin=.inf", "data.false_negative_margin: expected a finite number"),
    ],
)
def test_errors_name_the_field(override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_config(overrides=[*REQUIRED, override])


def test_a_warm_up_is_given_once() -> None:
    assert load_config(overrides=[*REQUIRED, "optimizer.warmup_steps=7"]).optimizer.warmup == 7
    assert load_config(overrides=[*REQUIRED, "optimizer.warmup_ratio=0"]).optimizer.warmup == 0
    with pytest.raises(InputError, match="warmup_ratio, warmup_steps: expected one of them, got 0.1 and 7"):
        load_config(overrides=[*REQUIRED, "optimizer.warmup_steps=7", "optimizer.warmup_ratio=0.1"])


@pytest.mark.parametrize(
    ("given", "intervals"),
    [
        ([], (0.1, 0.1)),
        (["eval_steps=3"], (3, 3)),
        (["save_steps=4"], (4, 4)),
        (["eval_steps=2", "save_steps=4"], (2, 4)),
    ],
)
def test_one_interval_stands_for_both(given: list[str], intervals: tuple[float, float]) -> None:
    assert load_config(overrides=[*REQUIRED, *(f"run.{each}" for each in given)]).run.intervals == intervals


def test_a_required_field_is_asked_for() -> None:
    with pytest.raises(InputError, match="output_dir: expected a value"):
        load_config(overrides=["base_model=m"])


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="not found"):
        load_config(tmp_path / "none.yaml")
    for text in ("a: [", "- a\n- b\n", ""):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(FormatError, match=r"bad\.yaml"):
            load_config(tmp_path / "bad.yaml", REQUIRED)


def test_a_configuration_survives_a_round_trip() -> None:
    config = load_config(overrides=[*REQUIRED, "student.lora_targets=[q_proj]", "optimizer.lr=2e-4"])
    assert build_config(asdict(config)) == config
