"""A run is examined before its first step: what is found is true, what cannot learn is refused, and no bit changes."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_setup import make_config, make_examples

from d2llm.data.example import Example, text_id
from d2llm.data.jsonl import read_examples, write_examples
from d2llm.errors import InputError
from d2llm.files import read_json
from d2llm.student import D2LLM
from d2llm.teacher.scores import ScoreTable
from d2llm.training import DistillationTrainer, TrainConfig, train
from d2llm.training.config import MiningConfig, build_config
from d2llm.training.preflight import REPORT, Report, preflight
from d2llm.training.preflight.findings import warnings
from d2llm.training.preflight.survey import survey
from d2llm.training.preflight.trial import StepCost


@pytest.fixture(scope="module")
def student(base_model: str) -> D2LLM:
    return D2LLM.create(base_model, lora_r=2, iem_hidden=8)


@pytest.fixture
def config(base_model: str, tmp_path: Path) -> TrainConfig:
    return make_config(base_model, tmp_path / "run")


def table(pairs: Sequence[tuple[str, str]]) -> ScoreTable:
    return ScoreTable({}, {(text_id(query), text_id(passage)): (1.0, 0.0) for query, passage in pairs})


def groups(examples: Sequence[Example]) -> list[tuple[str, str]]:
    return [(example.query, passage) for example in examples for passage in example.passages]


def unscored(count: int = 8) -> list[Example]:
    """Examples with two hard negatives each, without scores."""
    return [replace(e, negatives=("x", "y"), scores=None) for e in make_examples()[:count]]


def examined(student: D2LLM, config: TrainConfig, examples: list[Example], teacher: Any = None) -> Report:
    return preflight(DistillationTrainer(student, config, examples, teacher=teacher), examples)


def test_trials_leave_every_bit_as_it_was(base_model: str, tmp_path: Path) -> None:
    weights = []
    for trial in (False, True):
        # Dropout and recomputation are on: both draw on the random state.
        config = make_config(base_model, tmp_path / str(trial), max_steps=4, save_steps=4, eval_steps=4)
        student = D2LLM.create(base_model, **config.student)
        trainer = DistillationTrainer(student, config, make_examples())
        if trial:
            before = {name: value.clone() for name, value in student.state_dict().items()}
            states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
            report = preflight(trainer, make_examples())
            assert report.cost is not None and 0 < report.cost.seconds and 0 < report.cost.bytes < report.cost.available
            assert torch.equal(states[0], torch.get_rng_state())
            assert states[1:] == (random.getstate(), np.random.get_state()[1].tolist())
            assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
            assert all(parameter.grad is None for parameter in student.parameters())
            assert not student.training and trainer.optimizer is None and trainer.state.global_step == 0
        trainer.train()
        weights.append(student.trainable_state())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_trials_end_when_they_have_taken_long(
    student: D2LLM, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []
    step = DistillationTrainer.training_step

    def counted(self: DistillationTrainer, *given: Any) -> torch.Tensor:
        tried.append(1)
        return step(self, *given)

    monkeypatch.setattr(DistillationTrainer, "training_step", counted)
    examined(student, config, make_examples())
    monkeypatch.setattr("d2llm.training.preflight.trial.ENOUGH", 0)
    assert len(tried) == 3
    assert examined(student, config, make_examples()).cost is not None and len(tried) == 4


def test_coverage_counts_the_pairs_that_meet(student: D2LLM, config: TrainConfig) -> None:
    examples = unscored()
    half = table(groups(examples[:4]))
    report = examined(student, config, examples, half)
    found = report.facts.survey
    # Eight steps over two batches an epoch: every example meets four times, with three passages.
    assert (found.batches, found.groups.met, found.groups.judged) == (8, 96, 48)
    assert found.in_batch.met == found.columns == found.open_columns == 8 * 4 * 3 and found.in_batch.judged == 0
    assert not report.errors
    assert any("48 of 96 pairs of queries and their own passages (50%); not" in text for text in report.warnings)
    assert any(
        "judged 0 of 96 pairs within a batch" in text and "teach score --in-batch" in text for text in report.warnings
    )
    assert not any("judged" in text for text in examined(student, config, examples, _whole(examples)).warnings)


def test_coverage_asks_the_teacher_of_a_task(student: D2LLM, config: TrainConfig) -> None:
    examples = unscored()
    whole = _whole(examples)
    asked = {
        tasks: survey(
            DistillationTrainer(student, config, examples, teacher=dict.fromkeys(tasks, whole)), examples
        ).groups.judged
        for tasks in (("sym",), ("asym",), ("sym", "asym"))
    }
    # Of 96 pairs half are of either task.
    assert list(asked.values()) == [48, 48, 96]


def _whole(examples: Sequence[Example]) -> ScoreTable:
    return table([*groups(examples), *((a.query, b.positive) for a in examples for b in examples)])


def test_a_long_run_is_surveyed_by_a_part_of_it(student: D2LLM, config: TrainConfig, monkeypatch: Any) -> None:
    monkeypatch.setattr("d2llm.training.preflight.survey.PAIRS", 64)
    long = replace(config, run=replace(config.run, max_steps=400))
    found = survey(DistillationTrainer(student, long, unscored()), unscored())
    assert 3 <= found.batches <= 4


@pytest.mark.parametrize(
    ("examples", "overrides", "teacher", "reason"),
    [
        (
            unscored(),
            {},
            table([("q", "p")]),
            "data.teacher: none of the pairs that meet is judged, such as an example",
        ),
        (unscored(), {"optimizer": {"warmup_steps": 9}}, None, "the run has 8 steps, fewer than its warm-up of 9"),
        (unscored(), {"loss": {"in_batch": 0, "labels": 0}}, None, "no loss has anything to learn from: loss.in_batch"),
        ([Example("q", "p", ("n",))], {"run": {"batch_size": 1}}, None, "expected at least two different examples"),
        ([Example("q", "p", ("n",))] * 4, {}, None, "expected at least two different examples, got 4 of one"),
        (
            [Example(f"q{i}", "p") for i in range(4)],
            {},
            None,
            r"loss.in_batch \(every other passage of a batch is a known positive\), loss.labels \(no hard negatives\)",
        ),
        ([Example("q", "a"), Example("r", "b")], {"run": {"batch_size": 1}}, None, r"in_batch \(a batch of one\)"),
        (
            unscored(),
            {"data": {"false_negative_filter": "teacher"}},
            table(groups(unscored())),
            "data.false_negative_filter: 'teacher' needs scores of pairs within a batch",
        ),
    ],
)
def test_a_run_that_cannot_learn_is_refused(
    student: D2LLM, config: TrainConfig, examples: list[Example], overrides: dict, teacher: Any, reason: str
) -> None:
    changes = {name: replace(getattr(config, name), **values) for name, values in overrides.items()}
    report = examined(student, replace(config, **changes), examples, teacher)
    assert report.cost is None and f"error:     {report.errors[0]}" in str(report)
    with pytest.raises(InputError, match=reason):
        report.check()


@pytest.mark.parametrize(
    ("examples", "overrides", "warning"),
    [
        (unscored(), {"data": {"negatives": 0}}, "data.negatives=0: none of 16 hard negatives is used"),
        (unscored(), {"loss": {"labels": 0}}, "no loss uses 64 of 64 hard negatives"),
        (make_examples(), {"optimizer": {"warmup_steps": 6}}, "the warm-up takes 6 of 8 steps"),
        (
            [*unscored(), replace(unscored(1)[0], line=9)],
            {},
            "1 examples repeat the query and the positive of another one (line 9)",
        ),
        ([Example(f"q{i}", "p", ("n",)) for i in range(4)], {}, "the in-batch loss has nothing to learn from: every"),
        (
            [replace(example, task=("asym", "sym")[i > 4]) for i, example in enumerate(unscored())],
            {"data": {"one_task_batches": True}},
            "task sym: 3 examples do not fill a batch of 4, so none is used",
        ),
    ],
)
def test_warnings_name_the_remedy(
    student: D2LLM, config: TrainConfig, examples: list[Example], overrides: dict, warning: str
) -> None:
    changes = {name: replace(getattr(config, name), **values) for name, values in overrides.items()}
    report = examined(student, replace(config, **changes), examples)
    assert not report.errors
    assert any(text.startswith(warning) for text in report.warnings), report.warnings


def test_negatives_that_will_be_mined_are_not_mined_before(base_model: str, config: TrainConfig) -> None:
    bare = [replace(example, negatives=()) for example in unscored()]
    mining = replace(config, mining=MiningConfig(every_steps=2), loss=replace(config.loss, in_batch=0))
    report = examined(D2LLM.create(base_model, **config.student), mining, bare)
    assert not report.errors and not (Path(config.output_dir) / "negatives").exists()
    assert examined(D2LLM.create(base_model, **config.student), replace(mining, mining=MiningConfig()), bare).errors


def test_false_negatives_are_counted_by_line(student: D2LLM, config: TrainConfig, tmp_path: Path) -> None:
    held = [Example("q", "a", ("n", "b")), Example("q", "b", ("m", "n", "m ")), *unscored()]
    write_examples(tmp_path / "data.jsonl", held)
    report = examined(student, config, read_examples(tmp_path / "data.jsonl"))
    negatives = report.facts.negatives
    assert (negatives.given, negatives.known_positives, negatives.repeated) == (21, 1, 1)
    assert negatives.places == ("line 1", "line 2")
    assert any("left out (line 1, line 2)" in text for text in report.warnings)


def test_a_schedule_without_warm_up_has_none(student: D2LLM, config: TrainConfig) -> None:
    constant = replace(config.optimizer, schedule="constant", warmup_steps=1000)
    report = examined(student, replace(config, optimizer=constant), unscored())
    assert report.facts.warmup_steps == 0 and not report.errors


def test_a_run_of_hours_is_told_what_would_shorten_it(student: D2LLM, config: TrainConfig) -> None:
    facts = examined(student, config, make_examples()).facts
    (told,) = (text for text in warnings(facts, config, StepCost(1800.0, 1, 2)) if "hours" in text)
    assert told.startswith("the run takes about 4 hours on this machine, without evaluation; less with fewer layers")
    assert all(f"{name}=" in told for name in ("texts_per_chunk", "gradient_checkpointing", "cache_states"))
    taken = replace(
        config, run=replace(config.run, texts_per_chunk=16, gradient_checkpointing=False, cache_states=True)
    )
    assert next(text for text in warnings(facts, taken, StepCost(1800.0, 1, 2)) if "hours" in text).endswith(
        "less with fewer layers (student.num_layers)"
    )
    assert not any("hours" in text for text in warnings(facts, config, StepCost(1.0, 1, 2)))


def test_cut_texts_are_counted(base_model: str, config: TrainConfig) -> None:
    short = D2LLM.create(base_model, lora_r=2, iem_hidden=8, query_length=3, passage_length=4)
    examples = [Example("open " * (1 + i), f"read{i}" * (1 + i)) for i in range(10)]
    report = examined(short, config, examples)
    queries = report.facts.queries
    lengths = sorted(len(short.tokenizer(e.query)["input_ids"]) for e in examples)
    assert queries.longest == queries.percentile_99 == lengths[-1] and queries.median == lengths[5]
    assert queries.cut == sum(length > 3 for length in lengths) / 10 > 0.5
    assert any(f"student.query_length={lengths[-1]} would keep 99 % whole" in text for text in report.warnings)


def test_training_keeps_the_report_and_prints_it(
    base_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_examples(tmp_path / "data.jsonl", make_examples())
    settings = {"batch_size": 4, "max_steps": 1, "bf16": False}
    values = {"base_model": base_model, "output_dir": str(tmp_path / "run"), "run": settings}
    values |= {"student": {"lora_r": 2, "iem_hidden": 8}, "data": {"train": str(tmp_path / "data.jsonl")}}
    values["data"]["validation_share"] = 0
    with pytest.raises(InputError, match=r"this run cannot learn: the run has 1 steps"):
        train(build_config(values | {"optimizer": {"warmup_steps": 2}}))
    refused = read_json(tmp_path / "run" / REPORT)
    assert refused["errors"] and refused["cost"] is None and not (tmp_path / "run" / "model.safetensors").exists()
    train(build_config(values | {"optimizer": {"warmup_steps": 0}}))
    kept = read_json(tmp_path / "run" / REPORT)
    assert not kept["errors"] and kept["facts"]["tasks"] == {"asym": 12, "sym": 12} and kept["cost"]["seconds"] > 0
    assert "examples:  24 (12 asym, 12 sym)" in capsys.readouterr().out
