"""A base that an installed package holds as a folder, and one that brings dropout."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

from d2llm.errors import MissingError
from d2llm.student import D2LLM


def _install(model: Path, site: Path) -> None:
    """A package of this model, as pip leaves one."""
    shutil.copytree(model, site / "some_model" / "model")
    record = site / "some_model-1.0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: some-model\nVersion: 1.0\n")
    files = [file.relative_to(site) for file in site.rglob("*") if file.is_file()]
    (record / "RECORD").write_text("".join(f"{file},,\n" for file in files))


def _bert(folder: Path, tokenizer_from: str) -> Path:
    """An encoder with dropout, with the tokenizer of another model."""
    shutil.copytree(tokenizer_from, folder)
    (folder / "model.safetensors").unlink()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=400, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return folder


def test_a_package_may_hold_a_folder(base_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site"
    _install(Path(base_model), site)
    monkeypatch.syspath_prepend(str(site))
    packaged, plain = (D2LLM.create(name, lora_r=2, iem_hidden=8) for name in ("pypi:some-model", base_model))
    assert packaged.config.base_model == "pypi:some-model"
    assert packaged.fingerprint() == plain.fingerprint()
    shutil.copytree(base_model, site / "some_model" / "other")
    with open(site / "some_model-1.0.dist-info" / "RECORD", "a") as record:
        record.write("some_model/other/model.safetensors,,\n")
    with pytest.raises(MissingError, match=r"one \.gguf file or model.safetensors in package some-model, found 2"):
        D2LLM.create("pypi:some-model")


@pytest.mark.parametrize(("fields", "repeats"), [({"lora_r": 2}, True), ({"lora_r": 0, "train_base": True}, False)])
def test_a_frozen_base_has_no_dropout(base_model: str, tmp_path: Path, fields: dict[str, int], repeats: bool) -> None:
    base = _bert(tmp_path / "bert", base_model)
    student = D2LLM.create(base, iem_hidden=8, lora_dropout=0.0, **fields).train()
    tokens = torch.arange(12).view(2, 6)
    first, second = (student.embed(tokens, torch.ones_like(tokens)) for _ in range(2))
    assert torch.equal(first, second) == repeats
