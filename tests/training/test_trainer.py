"""Training learns, logs its parts, watches the real metric and comes back from a kill with the same bits."""

import shutil
import signal
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from interrupted_run import run
from safetensors.torch import load_file
from training_setup import make_config, make_examples

from d2llm.data.example import Example
from d2llm.data.jsonl import write_examples
from d2llm.data.validation import Validation
from d2llm.errors import InputError, MismatchError
from d2llm.evaluation.systems import student_mrr
from d2llm.files import write_json
from d2llm.losses import cosines
from d2llm.student import D2LLM
from d2llm.teacher.scores import ScoreTable
from d2llm.training import DistillationTrainer, train
from d2llm.training.arguments import training_arguments
from d2llm.training.config import OptimizerConfig
from d2llm.training.run import last_whole, prepare_folder
from d2llm.training.trainer import parameter_groups
from d2llm.training.watching import Outcome
from tests.processes import exit_code


@pytest.fixture(scope="module")
def whole(base_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    run(base_model, folder)
    return folder


@pytest.mark.parametrize(
    ("kill_at", "last", "left"),
    [(7, "checkpoint-4", list(range(5, 15))), (14, "checkpoint-14", [])],
    ids=["between two checkpoints", "between the last checkpoint and the student"],
)
def test_a_killed_run_resumes_to_the_same_bits(
    base_model: str, whole: Path, tmp_path: Path, kill_at: int, last: str, left: list[int]
) -> None:
    assert exit_code(run, base_model, tmp_path, kill_at) == -signal.SIGKILL
    assert last_whole(tmp_path).name == last and not (tmp_path / "model.safetensors").exists()
    assert run(base_model, tmp_path, resume=True) == left
    assert_same_students(whole, tmp_path)


def test_a_finished_run_run_again_trains_nothing(base_model: str, whole: Path, tmp_path: Path) -> None:
    # Moved, since nothing may hang on where it was made.
    again = shutil.copytree(whole, tmp_path / "again")
    checkpoints = sorted(again.glob("checkpoint-*"))
    assert run(base_model, again, resume=True) == []
    assert sorted(again.glob("checkpoint-*")) == checkpoints
    assert_same_students(whole, again)
    for checkpoint in checkpoints:
        shutil.rmtree(checkpoint)
    with pytest.raises(InputError, match="holds a student and no checkpoint to go on from; name another folder"):
        run(base_model, again, resume=True)


def assert_same_students(one: Path, two: Path) -> None:
    expected, got = (load_file(folder / "model.safetensors") for folder in (one, two))
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        assert torch.equal(value, got[name]), name


Trained = tuple[DistillationTrainer, D2LLM]


@pytest.fixture(scope="module")
def trained(base_model: str, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    examples = make_examples()
    config = make_config(base_model, tmp_path_factory.mktemp("run"), max_steps=8)
    student = D2LLM.create(base_model, **config.student)
    validation = Validation.from_examples([e for e in examples if e.task == "asym"])
    trainer = DistillationTrainer(student, config, examples, validation)
    trainer.train()
    return trainer, student


def test_parts_and_metrics_are_logged_under_their_names(trained: Trained) -> None:
    history = trained[0].state.log_history
    parts = {"loss_in_batch", "loss_contrastive", "loss_rank_correlation", "loss_rank_pairwise"}
    losses = [entry for entry in history if "loss" in entry]
    assert len(losses) == 4 and all(parts <= entry.keys() for entry in losses)
    # The first two batches hold no negatives but judged ones.
    assert ["loss_labels" in entry for entry in losses] == [False, True, True, True]
    for entry in losses:
        assert sum(entry.get(name, 0) for name in (*parts, "loss_labels")) == pytest.approx(entry["loss"], rel=1e-3)
    metrics = [entry["eval_mrr"] for entry in history if "eval_mrr" in entry]
    # Before the first step, and after every second of eight.
    assert len(metrics) == 5 and all(0 < metric <= 1 for metric in metrics)


def test_the_best_step_is_what_remains(trained: Trained) -> None:
    trainer, student = trained
    best = max(entry["eval_mrr"] for entry in trainer.state.log_history if "eval_mrr" in entry)
    assert trainer.state.best_metric == best
    assert student_mrr(student, trainer.validation)["mrr"] == pytest.approx(best, abs=1e-12)


def test_checkpoints_hold_students_without_their_base(trained: Trained) -> None:
    newest = last_whole(Path(trained[0].config.output_dir))
    assert newest is not None
    assert load_file(newest / "model.safetensors").keys() == trained[1].trainable_state().keys()
    assert not (newest / "training_args.bin").exists()
    assert D2LLM.from_pretrained(newest).encode(["open the file"]).shape == (1, 32)


def test_a_checkpoint_that_was_cut_short_is_passed_over(trained: Trained, tmp_path: Path) -> None:
    folder = Path(trained[0].config.output_dir)
    newest = last_whole(folder)
    for name, text in (("trainer_state.json", '{"epoch": 1'), ("model.safetensors", "")):
        cut = folder / "checkpoint-999"
        cut.mkdir(exist_ok=True)
        for file in newest.iterdir():
            (cut / file.name).write_bytes(file.read_bytes())
        (cut / name).write_text(text)
        assert last_whole(folder) == newest
    assert last_whole(tmp_path) is None


def test_learning_without_a_teacher_lowers_the_loss_and_leaves_the_base(base_model: str, tmp_path: Path) -> None:
    examples = [Example(e.query, e.positive, e.negatives) for e in make_examples()]
    config = make_config(base_model, tmp_path, max_steps=20, save_steps=20, logging_steps=5)
    student = D2LLM.create(base_model, **config.student)
    frozen = {name: p.clone() for name, p in student.named_parameters() if not p.requires_grad}
    trainer = DistillationTrainer(student, config, examples)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    for part in ("loss_in_batch", "loss_labels"):
        assert logged[-1][part] < logged[0][part]
    assert all(torch.equal(value, dict(student.named_parameters())[name]) for name, value in frozen.items())
    with pytest.raises(InputError, match="validation"):
        trainer.evaluate()


def test_a_filter_masks_what_scores_above_the_positive(base_model: str, tmp_path: Path) -> None:
    config = make_config(base_model, tmp_path)
    student = D2LLM.create(base_model, **config.student)
    near = cosines(torch.eye(3), torch.tensor([[1.0, 0, 0], [2, 0, 0], [0, 9, 1]]))
    known, s_in_batch = torch.zeros(3, 3, dtype=torch.bool), torch.tensor([[0.5, 0.1, 0.9], [0, 0.6, 0], [0, 0, 0.1]])
    known[2, 1] = True
    masks = {}
    for name in (None, "cosine", "teacher"):
        data = replace(config.data, false_negative_filter=name, false_negative_margin=0.2)
        filtered = replace(config, data=data)
        if name == "teacher":
            with pytest.raises(InputError, match=r"data.false_negative_filter: 'teacher' needs a file of scores"):
                DistillationTrainer(student, filtered, make_examples())
        trainer = DistillationTrainer(student, filtered, make_examples(), teacher=ScoreTable({}))
        targets = {"duplicates": known, "s_in_batch": s_in_batch}
        masks[name] = trainer._no_negatives(targets, near).nonzero().tolist()
    assert masks == {None: [[2, 1]], "cosine": [[1, 2], [2, 1]], "teacher": [[0, 2], [2, 1]]}


@pytest.mark.parametrize("save_steps", (2, 6), ids=["where it saves", "between two that it saves"])
def test_early_stopping_follows_the_metric(
    base_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save_steps: int
) -> None:
    examples = make_examples()
    config = make_config(base_model, tmp_path, max_steps=20, patience=2, save_steps=save_steps)
    validation = Validation.from_examples([e for e in examples if e.task == "sym"])
    falling = iter(np.linspace(0.9, 0.1, 20))
    monkeypatch.setattr("d2llm.evaluation.systems.student_mrr", lambda *_: {"mrr": float(next(falling))})
    trainer = DistillationTrainer(D2LLM.create(base_model, **config.student), config, examples, validation)
    trainer.train()
    # Best before the first step, worse at 2 and 4: stop.
    assert trainer.state.global_step == 4 and trainer.state.best_global_step == 0
    best = trainer.student.fingerprint()
    again = DistillationTrainer(D2LLM.create(base_model, **config.student), config, examples, validation)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert again.state.global_step == 4 and again.student.fingerprint() == best


@pytest.mark.parametrize(("before", "after", "last"), [(2, 4, 8), (None, 3, 6)], ids=["raised", "set"])
def test_a_resumed_run_has_the_patience_of_now(
    base_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int | None, after: int, last: int
) -> None:
    examples = make_examples()
    validation = Validation.from_examples([e for e in examples if e.task == "sym"])
    falling = iter(np.linspace(0.9, 0.1, 20))
    monkeypatch.setattr("d2llm.evaluation.systems.student_mrr", lambda *_: {"mrr": float(next(falling))})
    for patience, max_steps in ((before, 4), (after, 20)):
        config = make_config(base_model, tmp_path, max_steps=max_steps, patience=patience)
        student = D2LLM.create(base_model, **config.student)
        trainer = DistillationTrainer(student, config, examples, validation)
        checkpoint = last_whole(tmp_path)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    # What was waited before counts.
    assert trainer.state.global_step == last and last_whole(tmp_path).name == f"checkpoint-{last}"


def test_each_task_has_its_figures_and_their_mean_is_watched(
    base_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = make_examples()
    config = make_config(base_model, tmp_path, max_steps=20, patience=2)
    # sym goes on rising when the mean has begun to fall.
    figures = {"asym": iter(np.linspace(0.9, 0.1, 10)), "sym": iter(np.linspace(0.1, 0.2, 10))}
    monkeypatch.setattr(
        "d2llm.evaluation.systems.student_mrr", lambda _, data, *__: {"mrr": float(next(figures[data.task]))}
    )
    student = D2LLM.create(base_model, **config.student)
    trainer = DistillationTrainer(student, config, examples, Validation.by_task(examples))
    trainer.train()
    first = next(entry for entry in trainer.state.log_history if "eval_mrr" in entry)
    assert (first["eval_mrr_asym"], first["eval_mrr_sym"], first["eval_mrr"]) == pytest.approx((0.9, 0.1, 0.5))
    assert trainer.state.global_step == 4 and trainer.state.best_global_step == 0


@pytest.mark.parametrize("best", (0, 3))
def test_the_start_and_the_last_step_are_candidates(
    base_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, best: int
) -> None:
    config = make_config(base_model, tmp_path, max_steps=3, patience=None)
    student = D2LLM.create(base_model, **config.student)
    validation = Validation.from_examples([e for e in make_examples() if e.task == "sym"])
    seen: list[str] = []

    def measured(student: D2LLM, *_: object) -> dict[str, float]:
        seen.append(student.fingerprint())
        return {"mrr": 0.9 if len(seen) - 1 == (0, 2, 3).index(best) else 0.1}

    monkeypatch.setattr("d2llm.evaluation.systems.student_mrr", measured)
    trainer = DistillationTrainer(student, config, make_examples(), validation)
    trainer.train()
    assert len(seen) == 3 and student.fingerprint() == seen[(0, 2, 3).index(best)]
    outcome = Outcome.of(trainer.state)
    assert (outcome.step, outcome.mrr, outcome.start_mrr) == (best, 0.9, 0.9 if best == 0 else 0.1)
    assert ("as it began" in str(outcome)) == (best == 0)


def test_steps_of_evaluation_matter_where_there_is_one(base_model: str, tmp_path: Path) -> None:
    config = make_config(base_model, tmp_path, eval_steps=100, save_steps=3)
    assert training_arguments(config, evaluates=False).save_steps == 3
    with pytest.raises(InputError, match=r"run.save_steps: expected a multiple of run.eval_steps 100, .* got 3"):
        training_arguments(config, evaluates=True)


def test_parameter_groups(base_model: str) -> None:
    student = D2LLM.create(base_model, lora_r=2, iem_hidden=8)
    groups = parameter_groups(student, OptimizerConfig(lr=1e-3, pma_lr=2e-3, lora_lr=5e-4))
    names = {id(parameter): name for name, parameter in student.named_parameters()}
    seen = [names[id(parameter)] for group in groups for parameter in group["params"]]
    assert sorted(seen) == sorted(name for name, p in student.named_parameters() if p.requires_grad)
    for group in groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert group["lr"] == (5e-4 if ".lora_" in name else 2e-3 if name.startswith("pma.") else 1e-3)
            assert group["weight_decay"] == (0.0 if name.endswith("bias") or ".ln" in name else 0.01)


def test_a_folder_with_checkpoints_is_not_overwritten(trained: Trained, base_model: str) -> None:
    folder = Path(trained[0].config.output_dir)
    config = make_config(base_model, folder)
    with pytest.raises(InputError, match="already holds checkpoint-8"):
        prepare_folder(config, resume=False)
    write_json(folder / "training.json", asdict(config))
    assert prepare_folder(make_config(base_model, folder, max_steps=99), resume=True).name == "checkpoint-8"
    with pytest.raises(MismatchError, match=r"run\.batch_size: expected 4, .* got 3"):
        prepare_folder(make_config(base_model, folder, batch_size=3), resume=True)


def test_too_few_examples_are_named(base_model: str, tmp_path: Path) -> None:
    config = make_config(base_model, tmp_path, batch_size=25)
    with pytest.raises(InputError, match="batch_size: expected at most the 24 examples"):
        DistillationTrainer(D2LLM.create(base_model, **config.student), config, make_examples())


def test_a_run_from_files(base_model: str, tmp_path: Path) -> None:
    examples = make_examples()
    write_examples(tmp_path / "train.jsonl", examples)
    write_examples(tmp_path / "held_out.jsonl", [e for e in examples if e.task == "sym"])
    config = make_config(base_model, tmp_path / "run", max_steps=4)
    data = replace(config.data, train=str(tmp_path / "train.jsonl"), validation=str(tmp_path / "held_out.jsonl"))
    student = train(replace(config, data=data))
    assert D2LLM.from_pretrained(tmp_path / "run").fingerprint() == student.fingerprint()
    with pytest.raises(InputError, match=r"data\.train"):
        train(config)
