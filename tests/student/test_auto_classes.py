"""A student where transformers leads to it: by its config.json, in another number type, over a quantised base."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, BitsAndBytesConfig

from d2llm import backbone
from d2llm.errors import FormatError, InputError, MissingError
from d2llm.student import D2LLM, D2LLMConfig

TEXTS = ["read the file", "open the socket of x y", "z"]


@pytest.fixture(scope="module")
def student(base_model: str) -> D2LLM:
    return D2LLM.create(base_model, lora_r=2, iem_hidden=16)


@pytest.fixture(scope="module")
def folder(student: D2LLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("student")
    student.save_pretrained(path)
    return path


def test_the_auto_classes_find_it_by_its_configuration(student: D2LLM, folder: Path) -> None:
    config = AutoConfig.from_pretrained(folder)
    assert isinstance(config, D2LLMConfig) and config.iem_hidden == 16
    loaded = AutoModel.from_pretrained(folder)
    assert isinstance(loaded, D2LLM) and loaded.fingerprint() == student.fingerprint()
    how = {"dtype": torch.bfloat16, "attn_implementation": "eager", "device_map": "cpu", "revision": "main"}
    loaded = AutoModel.from_pretrained(folder, **how, kernels_backend="reference", trust_remote_code=True)
    assert loaded.backbone.dtype == torch.bfloat16 and loaded.config.kernels_backend == "reference"
    assert loaded.backbone.config._attn_implementation == "eager"
    assert AutoModel.from_pretrained(folder, dtype="auto").backbone.dtype == torch.float32
    with pytest.raises(InputError, match="unknown fields"):
        AutoModel.from_pretrained(folder, output_loading_info=True)


def test_what_contradicts_or_lacks_is_told_by_the_auto_classes_too(folder: Path, tmp_path: Path) -> None:
    for name, change, expected in (
        ("altered", {"lora_alpha": 64}, "lora_alpha: expected 8, with which model.safetensors was saved, got 64"),
        ("unknown", {"hidden_layer": "first"}, "hidden_layer"),
    ):
        (tmp_path / name).mkdir()
        shutil.copy(folder / "model.safetensors", tmp_path / name)
        config = json.loads((folder / "config.json").read_text())
        (tmp_path / name / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises((FormatError, InputError), match=expected):
            AutoModel.from_pretrained(tmp_path / name)
    weights = {name: value for name, value in load_file(folder / "model.safetensors").items() if "iem" not in name}
    (tmp_path / "headless").mkdir()
    shutil.copy(folder / "config.json", tmp_path / "headless")
    with pytest.raises(MissingError, match=r"headless/model.safetensors: file not found"):
        AutoModel.from_pretrained(tmp_path / "headless")
    save_file(weights, tmp_path / "headless" / "model.safetensors")
    with pytest.raises(FormatError, match=r"missing weights, such as 'iem\."):
        AutoModel.from_pretrained(tmp_path / "headless")
    # transformers' own words, which name it only where there is a hub to ask.
    with pytest.raises(OSError):
        AutoModel.from_pretrained("user/nothing", cache_dir=tmp_path, local_files_only=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_to_another_number_type(folder: Path, student: D2LLM, dtype: torch.dtype) -> None:
    changed = D2LLM.from_pretrained(folder).to(dtype)
    assert {weight.dtype for weight in changed.parameters()} == {dtype}
    found, expected = changed.encode(TEXTS), student.encode(TEXTS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=0.05)
    np.testing.assert_allclose(changed.score(TEXTS, TEXTS[::-1]), student.score(TEXTS, TEXTS[::-1]), atol=0.5)


def test_what_is_merged_and_saved_has_no_lora(student: D2LLM, tmp_path: Path) -> None:
    with torch.no_grad():
        for name, weight in student.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.02)
    student.merge_and_save(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert loaded.config.lora_r == 0 and not [name for name in loaded.state_dict() if "lora" in name]
    np.testing.assert_allclose(loaded.encode(TEXTS), student.encode(TEXTS), atol=1e-5)


def test_a_quantised_base_is_asked_of_transformers(
    base_model: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def refuse(path: str, **options: object) -> None:
        asked.append(options)
        raise OSError("not today")

    monkeypatch.setattr(backbone.AutoModel, "from_pretrained", refuse)
    config = BitsAndBytesConfig(load_in_8bit=True)
    for make in (D2LLM.create, D2LLM.from_pretrained):
        with pytest.raises(MissingError, match="not today"):
            make(base_model if make == D2LLM.create else folder, quantization_config=config, device_map={"": 0})
    assert all(each["quantization_config"] is config and each["device_map"] == {"": 0} for each in asked)
    assert len(asked) == 2
    with pytest.raises(InputError, match="quantization_config: expected None for a base that is trained"):
        D2LLM.create(base_model, lora_r=0, train_base=True, quantization_config=config)


def test_a_quantised_base_is_not_saved(base_model: str, tmp_path: Path) -> None:
    student = D2LLM.create(base_model, lora_r=2, iem_hidden=16)
    layer = student.backbone.layers[0].mlp.up_proj.get_base_layer()
    layer.weight = torch.nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(InputError, match="expected a base of floating weights, got a quantised one"):
        student.save_pretrained(tmp_path / "whole", save_base=True)
    assert not (tmp_path / "whole").exists()
    student.save_pretrained(tmp_path / "named")
