"""A base that torchao holds in eight bits: LoRA and heads beside it, encoding, saving, loading."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torchao")

import torch
from torchao.quantization import Int8WeightOnlyConfig
from transformers import TorchAoConfig

from d2llm import D2LLM
from d2llm.errors import InputError
from tests.conftest import save_base

TEXTS = ["read the file", "open the socket of x y", "z"]


def test_a_base_in_eight_bits(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    config = TorchAoConfig(Int8WeightOnlyConfig())
    whole, student = (D2LLM.create(base, lora_r=2, iem_hidden=16, quantization_config=each) for each in (None, config))
    layer = student.backbone.layers[0].mlp.up_proj.get_base_layer()
    assert type(layer.weight) is not torch.nn.Parameter and "lora_A" in str(student.trainable_state().keys())
    with torch.no_grad():
        for model in (whole, student):
            for name, weight in model.named_parameters():
                if "lora_B" in name:
                    weight.fill_(0.02)
    found, expected = student.encode(TEXTS), whole.encode(TEXTS)
    np.testing.assert_allclose(found, expected, atol=0.1)
    assert not np.array_equal(found, expected)
    loss = student(**student.tokenizer(TEXTS, return_tensors="pt", padding=True)).embeddings.square().sum()
    loss.backward()
    assert all(weight.grad is not None for name, weight in student.named_parameters() if "lora" in name)
    student.save_pretrained(tmp_path / "student")
    loaded = D2LLM.from_pretrained(tmp_path / "student", quantization_config=config)
    np.testing.assert_array_equal(loaded.encode(TEXTS), found)
    assert loaded.fingerprint() == student.fingerprint() != whole.fingerprint()
    with pytest.raises(InputError, match="got a quantised one"):
        student.merge_and_save(tmp_path / "merged")
