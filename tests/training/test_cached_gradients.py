"""A batch of any size at the memory of a chunk, with the gradients of the whole."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training_setup import make_config, make_examples

from d2llm.data.positives import KnownPositives
from d2llm.errors import InputError
from d2llm.losses import d2llm_loss
from d2llm.student import D2LLM, modeling
from d2llm.student.cached_gradients import cached
from d2llm.training import DistillationTrainer
from d2llm.training.collator import Collator
from d2llm_kernels.measure.memory import allocations, peak_bytes

CHUNK = 4


@pytest.fixture(autouse=True)
def few_pairs_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of passages take several chunks in small batches too."""
    monkeypatch.setattr(modeling, "_PAIRS_AT_ONCE", 16)


def loss(student: D2LLM, batch: dict[str, Tensor], targets: dict[str, Tensor], **how: Any) -> Tensor:
    """All losses of a batch of both tasks."""
    output = student(**batch, **how)
    total, parts = d2llm_loss(output.logits, output.in_batch_logits, features=output.features, **targets)
    assert {"in_batch", "contrastive", "rank_correlation", "rank_pairwise", "feature"} <= parts.keys()
    return total


def setting(base_model: str, dtype: torch.dtype = torch.float64, **fields: Any) -> tuple[Any, ...]:
    """A student in training, and a batch of 12 with a teacher's scores and relations."""
    made = {"num_layers": 2, "lora_r": 2, "iem_hidden": 8, "init": "xavier"}
    student = D2LLM.create(base_model, **{**made, **fields}).to(dtype).train()
    examples = make_examples()[:12]
    batch = Collator(student.tokenizer, 24, 24, KnownPositives(examples))(examples)
    targets = {name: batch.pop(name) for name in ("s", "log_odds", "valid", "duplicates")}
    relation = torch.rand(12, *2 * targets["valid"].shape[1:], generator=torch.Generator().manual_seed(0))
    in_batch = torch.rand(12, 12, generator=torch.Generator().manual_seed(1))
    return student, batch, {**targets, "teacher_relation": relation, "s_in_batch": in_batch}


def gradients(student: D2LLM, batch: Any, targets: Any, **how: Any) -> dict[str, Tensor]:
    student.zero_grad()
    torch.manual_seed(0)
    loss(student, batch, targets, texts_per_chunk=CHUNK, **how).backward()
    return {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}


# Losses are taken in float32, whatever the student's number type; what chunks round elsewhere is far below that.
def assert_same(expected: dict[str, Tensor], got: dict[str, Tensor], tolerance: float) -> None:
    assert expected.keys() == got.keys() and any(value.any() for value in expected.values())
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=0, atol=tolerance * max(1e-6, float(value.abs().max())))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_the_whole_batch(base_model: str, dropout: float, checkpointing: bool) -> None:
    student, batch, targets = setting(base_model, lora_dropout=dropout)
    if checkpointing:
        # The later name, where the installed transformers has it already.
        getattr(student, "activation_checkpointing_enable", student.gradient_checkpointing_enable)(
            {"use_reentrant": False}
        )
    expected = gradients(student, batch, targets)
    state = torch.get_rng_state()
    assert any(".lora_" in name for name in expected) and {"pma.S", "iem.linear1.weight"} <= expected.keys()
    assert_same(expected, gradients(student, batch, targets, cached_gradients=True), 1e-6)
    # What is drawn next is what would be drawn after the plain step.
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("frozen", [False, True])
def test_every_weight_and_heads_alone(base_model: str, frozen: bool) -> None:
    student, batch, targets = setting(base_model, lora_r=0)
    student.backbone.requires_grad_(not frozen)
    expected = gradients(student, batch, targets)
    assert any(name.startswith("backbone.") for name in expected) != frozen
    assert_same(expected, gradients(student, batch, targets, cached_gradients=True), 1e-6)


def test_autocast_is_repeated(base_model: str) -> None:
    student, batch, targets = setting(base_model, torch.float32, lora_dropout=0.3)
    # With its cache, autocast adds up gradients of weights in bfloat16.
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        expected = gradients(student, batch, targets)
    student.zero_grad()
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        total = loss(student, batch, targets, texts_per_chunk=CHUNK, cached_gradients=True)
    total.backward()
    assert_same(expected, {name: p.grad for name, p in student.named_parameters() if p.grad is not None}, 3e-2)


def test_a_result_without_a_gradient_and_inputs_with_one() -> None:
    x, weight = (torch.randn(3, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    unused = torch.ones(2, requires_grad=True)

    def function(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        return (x[rows] @ weight).tanh(), x.square() @ weight

    result, _ = cached(function, (x, torch.tensor([2, 0])), (weight, unused))
    result.sum().backward()
    expected = torch.autograd.grad(function(x, torch.tensor([2, 0]))[0].sum(), (x, weight))
    torch.testing.assert_close((x.grad, weight.grad), expected)
    assert unused.grad is None


def random_batch(size: int, group: int = 3, length: int = 16) -> dict[str, Tensor]:
    """Tokens of ``size`` queries with ``group`` passages each."""
    passages = torch.randint(0, 200, (size * group, length), generator=torch.Generator().manual_seed(size))
    queries = passages[:size]
    return {
        "input_ids": queries,
        "attention_mask": torch.ones_like(queries),
        "passage_input_ids": passages,
        "passage_attention_mask": torch.ones_like(passages),
        "groups": torch.arange(size * group).view(size, group),
        "task": torch.arange(size) % 2,
    }


def test_memory_is_that_of_a_chunk(base_model: str) -> None:
    student = D2LLM.create(base_model, lora_r=2, iem_hidden=32, lora_dropout=0.1).train()

    def peak(size: int, cached_gradients: bool) -> int:
        batch = random_batch(size)
        group = batch["groups"].shape[1]
        targets = {"s": torch.rand(size, group), "teacher_relation": torch.eye(group).repeat(size, 1, 1)}

        def step() -> None:
            loss(student, batch, targets, texts_per_chunk=8, cached_gradients=cached_gradients).backward()

        student.zero_grad()
        return peak_bytes(step)

    peaks = {size: peak(size, True) for size in (8, 32)}
    texts = (32 - 8) * 4
    # Vectors, their gradients and features; the tokens of chunks; the random state of each chunk; the (B, B) logits.
    vectors, tokens, states, logits = texts * 32 * 4, texts * 16 * 16, texts // 8 * 5056, (32**2 - 8**2) * 4
    assert peaks[32] - peaks[8] < 4 * vectors + tokens + states + 4 * logits
    # A plain step holds all activations: a hundred times as much for each further text.
    assert peak(8, False) > 10 * (peaks[32] - peaks[8])


def test_groups_keep_their_results_only(base_model: str) -> None:
    student = D2LLM.create(base_model, iem_hidden=256)

    def held(size: int, cached_gradients: bool) -> int:
        batch = {name: value for name, value in random_batch(size, group=9).items() if name in ("groups", "task")}
        vectors = {"query_vectors": torch.randn(size, 32), "passage_vectors": torch.randn(size * 9, 32)}
        output: list[Any] = []
        # What the forward pass frees again cancels out.
        return sum(allocations(lambda: output.append(student(**batch, **vectors, cached_gradients=cached_gradients))))

    plain, lean = (held(128, how) - held(64, how) for how in (False, True))
    features = 64 * 9 * 256 * 4
    # A plain pass also keeps what the projections make of each pair, and their sum.
    assert lean < 2 * features < 3 * features < plain


def finished(base_model: str, folder: Path, **run: Any) -> dict[str, Tensor]:
    config = make_config(base_model, folder, texts_per_chunk=6, accumulation_steps=3, max_steps=4, save_steps=4, **run)
    student = D2LLM.create(base_model, **config.student)
    DistillationTrainer(student, config, make_examples()).train()
    return student.trainable_state()


def test_a_run_goes_as_it_would_without(base_model: str, tmp_path: Path) -> None:
    plain, caching = (finished(base_model, tmp_path / str(how), cached_gradients=how) for how in (False, True))
    # A hundredth of one step: the optimizer divides gradients, rounding included, by their size.
    torch.testing.assert_close(caching, plain, rtol=0, atol=1e-5)


def test_chunks_are_asked_for(base_model: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"run\.texts_per_chunk: expected a number"):
        make_config(base_model, tmp_path, cached_gradients=True)
