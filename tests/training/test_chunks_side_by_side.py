"""A step whose chunks are computed in threads of their own is the step that computes them one after the other."""

from pathlib import Path
from typing import Any

import pytest
import torch
from test_cached_gradients import assert_same, gradients, setting
from torch import Tensor
from training_setup import make_config, make_examples

from d2llm.student import D2LLM, chunks, chunks_side_by_side
from d2llm.training import DistillationTrainer

pytestmark = pytest.mark.usefixtures("two_threads", "few_tokens")


@pytest.fixture
def few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of a test are enough for several threads."""
    monkeypatch.setattr(chunks, "_THREAD_TOKENS", 1)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many chunks each step in threads had."""
    found: list[int] = []
    embedded = chunks_side_by_side.embedded

    def counted(embed: Any, parts: Any, *how: Any) -> Tensor:
        found.append(len(parts))
        return embedded(embed, parts, *how)

    monkeypatch.setattr(chunks_side_by_side, "embedded", counted)
    return found


def in_turn(student: D2LLM, *given: Any, **how: Any) -> dict[str, Tensor]:
    """Gradients with one thread."""
    torch.set_num_threads(1)
    try:
        return gradients(student, *given, **how)
    finally:
        torch.set_num_threads(2)


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_chunks_in_turn(
    base_model: str, passes: list[int], cached: bool, checkpointing: bool
) -> None:
    student, batch, targets = setting(base_model, lora_dropout=0.0)
    if checkpointing:
        # The later name, where the installed transformers has it already.
        enable = getattr(student, "activation_checkpointing_enable", student.gradient_checkpointing_enable)
        enable({"use_reentrant": False})
    expected = in_turn(student, batch, targets, cached_gradients=cached)
    assert passes == []
    torch.manual_seed(0)
    state = torch.get_rng_state()
    got, again = (gradients(student, batch, targets, cached_gradients=cached) for _ in range(2))
    assert len(passes) == 2 and passes[0] > 2 and torch.equal(torch.get_rng_state(), state)
    assert_same(expected, got, 1e-6)
    assert all(torch.equal(again[name], value) for name, value in got.items())


def test_every_weight_and_autocast(base_model: str, passes: list[int]) -> None:
    student, batch, targets = setting(base_model, torch.float32, lora_r=0, train_base=True)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        expected = in_turn(student, batch, targets)
        got = gradients(student, batch, targets)
    assert len(passes) == 1 and any(name.startswith("backbone.") for name in got)
    assert_same(expected, got, 3e-2)


def test_dropout_goes_on_one_chunk_after_the_other(base_model: str, passes: list[int]) -> None:
    student, batch, targets = setting(base_model, lora_dropout=0.3)
    gradients(student, batch, targets)
    assert passes == []
    student.eval()
    gradients(student, batch, targets)
    assert len(passes) == 1


def test_a_run_goes_as_it_would_and_resumes_to_the_same_bits(
    base_model: str, tmp_path: Path, passes: list[int]
) -> None:
    def finished(name: str, threads: int, resume: str | None = None, **run: Any) -> dict[str, Tensor]:
        config = make_config(base_model, tmp_path / name, texts_per_chunk=3, max_steps=4, save_steps=2, **run)
        student = D2LLM.create(base_model, **{**config.student, "lora_dropout": 0.0})
        torch.set_num_threads(threads)
        DistillationTrainer(student, config, make_examples()).train(resume)
        return student.trainable_state()

    alone = finished("alone", 1)
    assert passes == []
    together = finished("together", 2)
    # A hundredth of one step: the optimizer divides gradients, rounding included, by their size.
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    resumed = finished("together", 2, resume=str(tmp_path / "together" / "checkpoint-2"))
    assert len(passes) == 6
    torch.testing.assert_close(resumed, together, rtol=0, atol=0)
