"""The copy that encoding computes with has LoRA merged, follows the weights, and shows nowhere else."""

import numpy as np
import pytest
import torch
from peft.tuners.lora import LoraLayer

from d2llm.merging import inference_dtype, merged
from d2llm.student import D2LLM

TEXTS = ["open the file", "read x y z", "close the socket of a b c", "z"]


def learned(base_model: str, **fields: object) -> D2LLM:
    """A student whose LoRA is not zero."""
    student = D2LLM.create(base_model, lora_r=4, lora_alpha=8, iem_hidden=8, **fields)
    move_lora(student, 1)
    return student


def move_lora(student: D2LLM, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in student.named_parameters():
            if ".lora_" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) / 4)


def unmerged(student: D2LLM) -> np.ndarray:
    """Embeddings by the student itself, a text at a time."""
    student.eval()
    with torch.no_grad():
        ids = [torch.tensor([student.tokenizer(text)["input_ids"]]) for text in TEXTS]
        return torch.cat([student.embed(tokens, torch.ones_like(tokens)) for tokens in ids]).numpy()


def test_encoding_gives_what_the_student_gives_without_its_lora_layers(base_model: str) -> None:
    student = learned(base_model)
    copy = merged(student.backbone, torch.float32)
    assert any(isinstance(layer, LoraLayer) for layer in student.backbone.modules())
    assert not any(isinstance(layer, LoraLayer) for layer in copy.modules())
    assert copy.get_input_embeddings().weight is student.backbone.get_input_embeddings().weight
    np.testing.assert_allclose(student.encode(TEXTS), unmerged(student), rtol=1e-4, atol=1e-5)


def test_a_bfloat16_base_is_merged_as_exactly_as_it_computes_unmerged(base_model: str) -> None:
    student, wide = learned(base_model, base_dtype="bfloat16"), learned(base_model)
    exact = student.encode(TEXTS, dtype=torch.float32)
    np.testing.assert_allclose(exact, wide.encode(TEXTS), rtol=0.05, atol=0.05)
    error, before = (np.abs(found - exact).mean() for found in (student.encode(TEXTS), unmerged(student)))
    assert 0 < error < 1.5 * before < 0.05


def test_the_copy_follows_every_change_of_the_weights(base_model: str) -> None:
    student = learned(base_model)
    before = student.encode(TEXTS)
    move_lora(student, 2)
    after = student.encode(TEXTS)
    assert not np.allclose(before, after)
    np.testing.assert_allclose(after, unmerged(student), rtol=1e-4, atol=1e-5)
    whole = {name: 2 * value for name, value in student.state_dict().items()}
    student.load_state_dict(whole)
    np.testing.assert_allclose(student.encode(TEXTS), unmerged(student), rtol=1e-4, atol=1e-4)


def test_the_copy_is_kept_until_the_student_is_trained(base_model: str) -> None:
    student = learned(base_model)
    student.encode(TEXTS)
    first = student.inference.of(student.backbone, torch.float32)
    student.encode(TEXTS[:1])
    assert student.inference.of(student.backbone, torch.float32) is first
    student.train()
    assert student.inference.of(student.backbone, torch.float32) is not first


def test_a_base_that_is_trained_changes_in_place(base_model: str) -> None:
    student = D2LLM.create(base_model, lora_r=0, train_base=True, iem_hidden=8)
    for dtype in (torch.float32, torch.bfloat16):
        before = student.encode(TEXTS, dtype=dtype)
        with torch.no_grad():
            student.backbone.layers[0].mlp.down_proj.weight.mul_(-20)
        assert not np.allclose(before, student.encode(TEXTS, dtype=dtype), atol=0.02)


def test_encoding_leaves_weights_names_and_fingerprint_alone(base_model: str) -> None:
    student = learned(base_model, base_dtype="bfloat16")
    before = {name: (value.clone(), value.requires_grad) for name, value in student.named_parameters()}
    names, fingerprint = list(student.state_dict()), student.fingerprint()
    student.encode(TEXTS)
    assert list(student.state_dict()) == names and student.fingerprint() == fingerprint
    for name, value in student.named_parameters():
        assert torch.equal(value, before[name][0]) and value.requires_grad == before[name][1], name


@pytest.mark.parametrize(
    ("found", "weights", "expected"),
    [
        ({"architecture": "x86_64", "avx2": True}, torch.bfloat16, torch.float32),
        ({"architecture": "x86_64", "avx512_bf16": True}, torch.bfloat16, torch.bfloat16),
        ({"architecture": "x86_64", "amx_bf16": True}, torch.bfloat16, torch.bfloat16),
        ({"architecture": "aarch64"}, torch.bfloat16, torch.bfloat16),
        ({"architecture": "x86_64", "avx512_bf16": True}, torch.float16, torch.float32),
        ({"architecture": "x86_64", "avx2": True}, torch.float32, torch.float32),
    ],
)
def test_a_cpu_computes_in_what_it_multiplies(
    monkeypatch: pytest.MonkeyPatch, found: dict, weights: torch.dtype, expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    assert inference_dtype(weights, torch.device("cpu")) == expected
    assert inference_dtype(weights, torch.device("cuda")) == weights
