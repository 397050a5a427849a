"""A run with a compiled LLM takes the steps that it would take without."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from training_setup import make_config, make_examples

from d2llm.student import D2LLM, modeling
from d2llm.training import DistillationTrainer, trainer


# That the compiled LLM computes the same has a test of its own.
@pytest.mark.rest
def test_it_takes_the_same_steps(base_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def compile_in_place(module: nn.Module) -> None:
        # The kernels take a minute to compile and are left to the benchmarks.
        calls.append(module)
        module.compile(dynamic=True, backend="aot_eager")

    monkeypatch.setattr(modeling, "compile_in_place", compile_in_place)
    monkeypatch.setattr(trainer, "check_compiler", lambda device: None)
    weights = []
    for compiled in (False, True):
        student = D2LLM.create(base_model, lora_r=2, lora_dropout=0.0, iem_hidden=8, num_layers=1)
        run = {"max_steps": 2, "gradient_checkpointing": False, "torch_compile": compiled}
        folder = tmp_path / str(compiled)
        DistillationTrainer(student, make_config(base_model, folder, **run), make_examples()).train()
        weights.append(load_file(folder / "checkpoint-2" / "model.safetensors"))
    assert len(calls) == 1
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-4, atol=1e-6)
