"""The copy that encoding computes with has LoRA merged, follows the weights, and shows nowhere else."""

from pathlib import Path

import numpy as np
import pytest
import torch
from peft.tuners.lora import LoraLayer

from d2llm.errors import InputError
from d2llm.merging import inference_dtype, merged, multiplies_bfloat16, widen
from d2llm.student import D2LLM
from d2llm.training.arguments import training_arguments
from d2llm.training.config import TrainConfig

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
    error, before = (
        np.abs(found - exact).mean() for found in (student.encode(TEXTS, dtype=torch.bfloat16), unmerged(student))
    )
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


@pytest.mark.parametrize("base_dtype", ["float32", "bfloat16"])
def test_a_merged_folder_needs_no_lora_and_encodes_the_same(base_model: str, tmp_path: Path, base_dtype: str) -> None:
    student = learned(base_model, base_dtype=base_dtype)
    student.save_pretrained(tmp_path, merged=True)
    loaded = D2LLM.from_pretrained(tmp_path)
    assert loaded.config.lora_r == 0 and not any(".lora_" in name for name in loaded.state_dict())
    # What a CPU that multiplies no bfloat16 computes in, float32, is not rounded as the folder is.
    dtype = getattr(torch, base_dtype)
    np.testing.assert_array_equal(loaded.encode(TEXTS, dtype=dtype), student.encode(TEXTS, dtype=dtype))
    with pytest.raises(InputError, match="merged"):
        student.save_pretrained(tmp_path, merged=True, state_dict=student.state_dict())


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


@pytest.mark.parametrize("multiplies", [False, True])
def test_training_avoids_numbers_that_the_cpu_does_not_multiply(
    monkeypatch: pytest.MonkeyPatch, base_model: str, tmp_path: Path, multiplies: bool
) -> None:
    found = {"architecture": "x86_64", "avx512_bf16": multiplies}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: None)
    assert multiplies_bfloat16() == multiplies
    config = TrainConfig(str(tmp_path), base_model, student={"base_dtype": "bfloat16"})
    assert training_arguments(config, evaluates=False).bf16 == multiplies
    student = D2LLM.create(base_model, base_dtype="bfloat16", lora_r=2, iem_hidden=8)
    before = student.fingerprint()
    widen(student)
    expected = torch.bfloat16 if multiplies else torch.float32
    assert student.backbone.get_input_embeddings().weight.dtype == expected
    assert student.fingerprint() == before
