"""Bases that torchao or bitsandbytes hold in few bits: LoRA and heads beside them, encoded with, saved, loaded."""

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("torchao")
pytest.importorskip("bitsandbytes")

from torchao.quantization import Int8WeightOnlyConfig
from transformers import BitsAndBytesConfig, TorchAoConfig
from transformers.utils.quantization_config import QuantizationConfigMixin

from d2llm import D2LLM
from d2llm.errors import InputError
from tests.conftest import save_base

TEXTS = ["read the file", "open the socket of x y", "z"]
#: How far embeddings may be from float32's, whose largest number is above 2.
EIGHT, FOUR = 0.1, 1.0


def with_lora(base: str, config: QuantizationConfigMixin | None) -> D2LLM:
    return D2LLM.create(base, lora_r=2, iem_hidden=16, quantization_config=config)


def learn(student: D2LLM) -> None:
    with torch.no_grad():
        for name, weight in student.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.02)


@pytest.mark.parametrize(
    ("config", "bound"),
    [
        (TorchAoConfig(Int8WeightOnlyConfig()), EIGHT),
        (BitsAndBytesConfig(load_in_8bit=True), EIGHT),
        (BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"), FOUR),
    ],
    ids=["torchao", "bitsandbytes-8", "bitsandbytes-4"],
)
def test_a_base_in_few_bits(config: QuantizationConfigMixin, bound: float, tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    whole, student = with_lora(base, None), with_lora(base, config)
    layer = student.backbone.layers[0].mlp.up_proj.get_base_layer()
    assert type(layer.weight) is not torch.nn.Parameter and "lora_A" in str(student.trainable_state().keys())
    untrained = student.fingerprint()
    np.testing.assert_allclose(student.encode(TEXTS), whole.encode(TEXTS), atol=bound)
    assert student.fingerprint() == untrained, "the first call changed the model"

    # Embeddings made before do not stay those of the weights that have learnt since.
    learn(whole)
    learn(student)
    found, expected = student.encode(TEXTS), whole.encode(TEXTS)
    np.testing.assert_allclose(found, expected, atol=bound)
    assert not np.array_equal(found, expected)
    tokens = student.tokenizer(TEXTS, return_tensors="pt", padding=True)
    with torch.no_grad():
        np.testing.assert_allclose(student.eval()(**tokens).embeddings, found, atol=1e-5)
    student.train()(**tokens).embeddings.square().sum().backward()
    assert all(weight.grad is not None for name, weight in student.named_parameters() if "lora" in name)

    student.save_pretrained(tmp_path / "student")
    loaded = D2LLM.from_pretrained(tmp_path / "student", quantization_config=config)
    assert loaded.fingerprint() == student.fingerprint() != untrained
    np.testing.assert_array_equal(loaded.encode(TEXTS), found)
    assert loaded.fingerprint() == student.fingerprint() != whole.fingerprint()
    with pytest.raises(InputError, match="got a quantised one"):
        student.merge_and_save(tmp_path / "merged")
