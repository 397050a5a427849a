"""Embeddings by linear layers in int8: near those in float, of a text by itself, and of the weights as they are now."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from d2llm.errors import InputError
from d2llm.shipped import STUDENT
from d2llm.student import D2LLM
from d2llm_kernels.rough.linear import Int8Linear

TEXTS = [
    "def add(a, b):\n    return a + b",
    "def read(path):\n    with open(path) as file:\n        return file.read()",
    "def sort(items):\n    return sorted(items)",
    "import socket",
]


def cosines(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    unit = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in (found, expected)]
    return (unit[0] * unit[1]).sum(1)


def test_embeddings_of_the_shipped_student_stay_near(tmp_path: Path) -> None:
    student = D2LLM.from_pretrained(STUDENT)
    expected, fingerprint = student.encode(TEXTS), student.fingerprint()
    assert student.quantize_encoder() is student
    found = student.encode(TEXTS)
    assert not np.array_equal(found, expected) and cosines(found, expected).min() > 0.99
    assert student.fingerprint() == fingerprint, "the student itself changed"
    layers = [layer for layer in student.inference.of(student.backbone, torch.float32).modules()]
    assert any(isinstance(layer, Int8Linear) for layer in layers)
    assert not any(type(layer) is nn.Linear for layer in layers)
    # A text by itself is encoded as it is among others.
    alone = np.concatenate([student.encode([text]) for text in TEXTS])
    np.testing.assert_allclose(alone, found, atol=1e-4)
    # A file that was begun in float is not gone on with.
    file = tmp_path / "vectors.npy"
    np.testing.assert_array_equal(student.encode(TEXTS, out=file), found)
    np.testing.assert_array_equal(D2LLM.from_pretrained(STUDENT).encode(TEXTS, out=file), expected)


def test_they_are_of_the_weights_as_they_are_now(base_model: str) -> None:
    student = D2LLM.create(base_model, lora_r=2, iem_hidden=8).quantize_encoder()
    before = student.encode(TEXTS)
    with torch.no_grad():
        for name, weight in student.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.5)
    assert not np.allclose(student.encode(TEXTS), before, atol=1e-3)


def test_what_cannot_be_both_is_refused(base_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("d2llm.student.modeling.check_compiler", lambda device: None)
    with pytest.raises(InputError, match="got one that torch compiles"):
        D2LLM.create(base_model, iem_hidden=8).compile_encoder().quantize_encoder()
    with pytest.raises(InputError, match="got one in int8"):
        D2LLM.create(base_model, iem_hidden=8).quantize_encoder().compile_encoder()
    student = D2LLM.create(base_model, iem_hidden=8)
    monkeypatch.setattr("d2llm.student.modeling.is_quantised", lambda module: True)
    with pytest.raises(InputError, match="base is quantised"):
        student.quantize_encoder()
