"""Two processes share a run: other batches, the same weights."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from gathered_run import gradients, run_gathered
from safetensors.torch import load_file
from sharded_run import run_sharded
from training_setup import make_config, make_examples

from d2llm.data.validation import Validation
from d2llm.errors import InputError
from d2llm.evaluation.systems import student_mrr
from d2llm.files import read_json
from d2llm.student import D2LLM
from d2llm.training import DistillationTrainer, shards
from tests.processes import run_two


@pytest.fixture(scope="module")
def two_processes(base_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of what two processes found that train together."""
    folder = tmp_path_factory.mktemp("two")
    run_two(run_gathered, base_model, folder)
    return folder


def test_two_processes_train_one_student(two_processes: Path) -> None:
    fingerprints = [(two_processes / f"fingerprint-{rank}").read_text() for rank in (0, 1)]
    assert fingerprints == [D2LLM.from_pretrained(two_processes).fingerprint()] * 2


@pytest.mark.parametrize("cached", [False, True], ids=["plain", "cached"])
def test_two_processes_learn_what_one_does_from_the_joined_batch(
    two_processes: Path, base_model: str, tmp_path: Path, cached: bool
) -> None:
    one = gradients(base_model, tmp_path, 8, cached)
    found = [load_file(two_processes / f"{'cached' if cached else 'plain'}-{rank}.safetensors") for rank in (0, 1)]
    apart = load_file(two_processes / "apart-0.safetensors")
    for name, expected in one.items():
        size = max(1.0, float(expected.abs().max()))
        for each in found:
            torch.testing.assert_close(
                each[name], expected, rtol=0, atol=1e-6 * size, msg=lambda text, name=name: f"{name}: {text}"
            )
    assert one.keys() == found[0].keys() == found[1].keys()
    # The batches of processes that do not gather are others.
    assert float((apart["iem.linear1.weight"] - one["iem.linear1.weight"]).abs().max()) > 1e-3


def test_what_two_processes_hold_in_shards_is_measured_and_written_whole(base_model: str, tmp_path: Path) -> None:
    run_two(run_sharded, base_model, tmp_path)
    found = {e["step"]: e for e in read_json(tmp_path / "checkpoint-2/trainer_state.json")["log_history"]}
    validation = Validation.by_task(make_examples())
    for step in range(3):
        written = D2LLM.from_pretrained(tmp_path / f"checkpoint-{step}")
        for task, held_out in validation.items():
            measured = student_mrr(written, held_out)
            assert found[step][f"eval_mrr_{task}"] == pytest.approx(measured["mrr"]), (step, task)
    # What remains is the best step, in the shards as on the disk.
    best = max(found, key=lambda step: found[step]["eval_mrr"])
    kept, shards = load_file(tmp_path / "model.safetensors"), [*map(load_file, sorted(tmp_path.glob("shards-*")))]
    assert kept.keys() == shards[0].keys() == written.trainable_state().keys()
    for name, value in load_file(tmp_path / f"checkpoint-{best}" / "model.safetensors").items():
        assert torch.equal(value, kept[name]), name
        assert torch.equal(value, torch.cat([shard[name] for shard in shards])), name


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("FSDP 1", "FSDP 1: expected whole weights in every process .* or FSDP 2"),
        ("ZeRO-3", "ZeRO-3: expected whole weights in every process"),
        ("FSDP 2", r"run\.cached_gradients: expected whole weights"),
    ],
)
def test_shards_that_cannot_be_measured_are_refused(
    base_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, reason: str
) -> None:
    config = make_config(base_model, tmp_path, cached_gradients=True, texts_per_chunk=3)
    make_accelerator = DistillationTrainer.create_accelerator_and_postprocess

    def sharding(trainer: DistillationTrainer) -> None:
        make_accelerator(trainer)
        trainer.is_fsdp_enabled = kind.startswith("FSDP")
        trainer.is_deepspeed_enabled = kind == "ZeRO-3"

    monkeypatch.setattr(DistillationTrainer, "create_accelerator_and_postprocess", sharding)
    monkeypatch.setattr(Accelerator, "is_fsdp2", kind == "FSDP 2")
    monkeypatch.setattr(shards, "is_deepspeed_zero3_enabled", lambda: kind == "ZeRO-3")
    with pytest.raises(InputError, match=reason):
        DistillationTrainer(D2LLM.create(base_model, **config.student), config, make_examples())
