"""A run's log for TensorBoard, which it writes where the extra ``train`` is installed."""

from pathlib import Path

import pytest

pytest.importorskip("tensorboard")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from d2llm import D2LLM
from d2llm.training import DistillationTrainer
from tests.conftest import save_base
from tests.training.training_setup import make_config, make_examples


def test_a_run_is_logged(tmp_path: Path) -> None:
    config = make_config(save_base(tmp_path / "base"), tmp_path / "run", max_steps=2)
    DistillationTrainer(D2LLM.create(config.base_model, **config.student), config, make_examples()).train()
    (file,) = (tmp_path / "run").rglob("events.out.tfevents.*")
    scalars = EventAccumulator(str(file)).Reload().Tags()["scalars"]
    assert {"train/loss", "train/loss_contrastive"} <= set(scalars)
