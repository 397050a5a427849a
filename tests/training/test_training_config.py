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
        ("run.epochs=.nan", "run.epochs: expected a positive number, got nan"),
        ("run.seed=4294967296", "run.seed: expected 0 to 4294967295, got 4294967296"),
        ("optimizer.eps=-1", "optimizer.eps: expected a number of at least 0, got -1"),
        ("optimizer.betas=[0.9, 1.5]", r"optimizer.betas: expected two numbers in \[0, 1\), got \(0.9, 1.5\)"),
        ("optimizer.betas=[.nan, 0.9]", "optimizer.betas: expected two numbers"),
        ("optimizer.weight_decay=-.inf", "optimizer.weight_decay: expected a number of at least 0, got -inf"),
        ("optimizer.max_grad_norm=.nan", "optimizer.max_grad_norm: expected a number of at least 0"),
        ("optimizer.schedule=wavy", "optimizer.schedule: expected one of linear, cosine.*got 'wavy'"),
        ("optimizer.schedule=cosine_with_min_lr", "optimizer.schedule: expected one of"),
        ("mining.margin=.nan", "mining.margin: expected a finite number or null"),
        ("student.lora_dropout=.nan", r"student.lora_dropout: expected a number in \[0, 1\), got nan"),
        ("student.iem_hidden=0", "student.iem_hidden: expected an integer of at least 1"),
        ("student.query_length=4294967296", "student.query_length: expected .* at most 2147483647"),
        (f"optimizer.lr={'9' * 400}", "not valid YAML.*at most 64 bits"),
        (f"output_dir=[{'a, ' * 1000}a]", r"output_dir: expected str, got \['a', 'a', .{189}\.\.\.$"),
    ],
)
def test_errors_name_the_field(override: str, message: str) -> None:
    with pytest.raises((InputError, FormatError), match=message):
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
    deep, long = "[" * 1000, "9" * 5000
    for text in ("a: [", "- a\n- b\n", "", f"a: {deep}", f"a: {long}", "a: 1\na: 2", "a: &x [1]\nb: *x", "\xff"):
        (tmp_path / "bad.yaml").write_text(text, encoding="latin-1")
        with pytest.raises(FormatError, match=r"bad\.yaml"):
            load_config(tmp_path / "bad.yaml", REQUIRED)


@pytest.mark.parametrize("text", ["[1", "*x", "{a: 1, a: 2}", "!!python/name:os.system", "[" * 1000, "9" * 5000])
def test_an_override_that_is_not_yaml_is_named(text: str) -> None:
    with pytest.raises(FormatError, match="override 'run.seed=.*not valid YAML"):
        load_config(overrides=[*REQUIRED, f"run.seed={text}"])


def test_a_configuration_survives_a_round_trip() -> None:
    config = load_config(overrides=[*REQUIRED, "student.lora_targets=[q_proj]", "optimizer.lr=2e-4"])
    assert build_config(asdict(config)) == config
