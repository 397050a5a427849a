"""Training the interaction module alone, on embeddings computed once."""

from pathlib import Path

import pytest
import torch
from training_setup import make_config, make_examples

from d2llm.data.example import Example
from d2llm.data.positives import KnownPositives
from d2llm.data.validation import Validation
from d2llm.errors import InputError
from d2llm.student import D2LLM
from d2llm.training import DistillationTrainer
from d2llm.training.collator import Collator
from d2llm.training.vectors import TextVectors


@pytest.fixture(scope="module")
def student(base_model: str) -> D2LLM:
    return D2LLM.create(base_model, lora_r=2, iem_hidden=8, lora_dropout=0.0)


@pytest.fixture(scope="module")
def vectors(student: D2LLM) -> TextVectors:
    return TextVectors.encode(student, make_examples())


def collate(student: D2LLM, examples: list[Example], vectors: TextVectors | None) -> dict[str, torch.Tensor]:
    return Collator(student.tokenizer, 250, 250, KnownPositives(examples), vectors=vectors)(examples)


@torch.no_grad()
def test_vectors_give_the_logits_of_tokens(student: D2LLM, vectors: TextVectors) -> None:
    given = ("input_ids", "attention_mask", "passage_input_ids", "passage_attention_mask", "groups", "task")
    names = (*given, "query_vectors", "passage_vectors")
    outputs = [
        student(**{name: value for name, value in collate(student, make_examples()[:6], kept).items() if name in names})
        for kept in (None, vectors)
    ]
    torch.testing.assert_close(outputs[0].logits, outputs[1].logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(outputs[0].in_batch_logits, outputs[1].in_batch_logits, rtol=0, atol=1e-4)


def test_only_the_interaction_module_learns(base_model: str, vectors: TextVectors, tmp_path: Path) -> None:
    student = D2LLM.create(base_model, lora_r=2, iem_hidden=8, lora_dropout=0.0)
    before = {name: value.clone() for name, value in student.trainable_state().items()}
    trainer = DistillationTrainer(
        student, make_config(base_model, tmp_path / "run", max_steps=2), make_examples(), vectors=vectors
    )
    trainer.train()
    changed = {name for name, value in student.trainable_state().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith("iem.") for name in changed)


def test_each_task_is_evaluated_on_its_own_vectors(
    base_model: str, student: D2LLM, vectors: TextVectors, tmp_path: Path
) -> None:
    config = make_config(base_model, tmp_path / "run")
    held_out = Validation.by_task(make_examples())
    with_vectors, without = (
        DistillationTrainer(student, config, make_examples(), held_out, vectors=kept).evaluate()
        for kept in (vectors, None)
    )
    assert {"eval_mrr_sym", "eval_mrr_asym"} <= with_vectors.keys()
    assert with_vectors == pytest.approx(without)


def test_texts_without_a_vector_are_named(vectors: TextVectors) -> None:
    with pytest.raises(InputError, match="1 texts were not encoded, such as 'never seen'"):
        vectors.queries(["never seen"])


def test_as_many_vectors_as_texts() -> None:
    with pytest.raises(InputError, match="expected 2, one a text, got 1"):
        TextVectors((["a", "b"], torch.zeros(1, 4)), ([], torch.zeros(0, 4)))
