"""A saved student comes back bit for bit, and a damaged one says what is wrong."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from d2llm.errors import D2LLMError, FormatError, InputError, MissingError
from d2llm.student import D2LLM

TEXTS = ["read the file", "open the socket of x y", "z"]


@pytest.fixture(scope="module")
def student(base_model: str) -> D2LLM:
    """A student whose weights are all random, LoRA's zero halves included."""
    model = D2LLM.create(base_model, lora_r=4, iem_hidden=16, lora_targets=["q_proj", "up_proj"], passage_length=7)
    generator = torch.Generator().manual_seed(5)
    for value in model.trainable_state().values():
        value.add_(torch.randn(value.shape, generator=generator), alpha=0.05)
    return model


@pytest.fixture
def saved(student: D2LLM, tmp_path: Path) -> Path:
    student.save_pretrained(tmp_path / "student")
    return tmp_path / "student"


def test_everything_comes_back_bit_for_bit(student: D2LLM, saved: Path) -> None:
    loaded = D2LLM.from_pretrained(saved)
    for name, value in student.trainable_state().items():
        assert torch.equal(value, loaded.trainable_state()[name]), name
    np.testing.assert_array_equal(student.encode(TEXTS), loaded.encode(TEXTS))
    assert loaded.fingerprint() == student.fingerprint()
    assert loaded.config.passage_length == 7 and not loaded.training
    loaded.save_pretrained(saved.parent / "again")
    for name in ("config.json", "model.safetensors"):
        assert (saved / name).read_bytes() == (saved.parent / "again" / name).read_bytes()


def test_a_trained_base_needs_no_other(base_model: str, tmp_path: Path) -> None:
    base = shutil.copytree(base_model, tmp_path / "base")
    student = D2LLM.create(base, lora_r=0, train_base=True, iem_hidden=8, num_layers=2)
    student.backbone.embed_tokens.weight.data += 0.1
    student.save_pretrained(tmp_path / "student", save_base=True)
    assert not list((tmp_path / "student" / "base").glob("*.safetensors"))
    student.save_pretrained(tmp_path / "student")
    shutil.rmtree(base)
    state = torch.get_rng_state()
    loaded = D2LLM.from_pretrained(tmp_path / "student")
    assert torch.equal(torch.get_rng_state(), state)
    assert loaded.fingerprint() == student.fingerprint() and loaded.config.base_model == str(base)
    np.testing.assert_array_equal(student.encode(TEXTS), loaded.encode(TEXTS))


def test_the_fingerprint_sees_own_weights_base_and_limits(student: D2LLM, saved: Path) -> None:
    loaded = D2LLM.from_pretrained(saved)
    loaded.iem.linear2.bias.data += 1e-6
    other_limit = D2LLM.from_pretrained(saved, passage_length=8)
    other_base = D2LLM.from_pretrained(saved)
    other_base.backbone.embed_tokens.weight.data += 0.1
    prints = {model.fingerprint() for model in (student, loaded, other_limit, other_base)}
    assert len(prints) == 4


def test_the_file_holds_lora_and_heads_only(student: D2LLM, saved: Path) -> None:
    names = load_file(saved / "model.safetensors").keys()
    assert names == student.trainable_state().keys()
    assert all(name.startswith(("pma.", "iem.")) or ".lora_" in name for name in names)
    assert sorted(path.name for path in saved.iterdir()) == ["config.json", "model.safetensors"]


def test_weights_that_were_gathered_elsewhere_are_what_is_written(student: D2LLM, saved: Path) -> None:
    gathered = {name: value + 1 for name, value in student.state_dict().items()}
    student.save_pretrained(saved, state_dict=gathered)
    written = load_file(saved / "model.safetensors")
    assert written.keys() == student.trainable_state().keys()
    assert all(torch.equal(value, gathered[name]) for name, value in written.items())


def test_only_the_main_process_writes(student: D2LLM, tmp_path: Path) -> None:
    student.save_pretrained(tmp_path / "absent", is_main_process=False, state_dict={})
    assert not (tmp_path / "absent").exists()


def test_half_precision_is_half_the_size_and_close(student: D2LLM, saved: Path) -> None:
    compact = saved.parent / "compact"
    student.save_pretrained(compact, head_dtype=torch.float16)
    full_size, size = ((folder / "model.safetensors").stat().st_size for folder in (saved, compact))
    assert size < 0.6 * full_size
    loaded = D2LLM.from_pretrained(compact)
    assert all(value.dtype == torch.float32 for value in loaded.trainable_state().values())
    np.testing.assert_allclose(loaded.encode(TEXTS), student.encode(TEXTS), atol=2e-2)
    with pytest.raises(InputError, match="head_dtype"):
        student.save_pretrained(compact, head_dtype=torch.int16)


def test_eight_bits_are_close(student: D2LLM, tmp_path: Path) -> None:
    student.save_pretrained(tmp_path, head_dtype=torch.int8)
    np.testing.assert_allclose(D2LLM.from_pretrained(tmp_path).encode(TEXTS), student.encode(TEXTS), atol=5e-2)


def test_a_folder_with_its_base_needs_nothing_else_and_may_move(student: D2LLM, saved: Path) -> None:
    student.save_pretrained(saved, save_base=True)
    moved = saved.rename(saved.parent / "moved")
    loaded = D2LLM.from_pretrained(moved)
    np.testing.assert_array_equal(loaded.encode(TEXTS), student.encode(TEXTS))
    assert loaded.fingerprint() == student.fingerprint()
    assert json.loads((moved / "config.json").read_text())["base_model"] == "base"


def test_the_base_can_be_loaded_in_bfloat16(student: D2LLM, saved: Path) -> None:
    loaded = D2LLM.from_pretrained(saved, dtype=torch.bfloat16)
    assert loaded.fingerprint() == student.fingerprint()
    kinds = {value.dtype for name, value in loaded.named_parameters() if name not in student.trainable_state()}
    assert kinds == {torch.bfloat16}
    for name, value in student.trainable_state().items():
        assert torch.equal(value, loaded.trainable_state()[name]), name


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(MissingError, match=name):
        D2LLM.from_pretrained(saved)


def test_a_missing_folder_and_an_unknown_option_are_named(saved: Path) -> None:
    with pytest.raises(MissingError, match="no such folder"):
        D2LLM.from_pretrained(saved / "nowhere")
    with pytest.raises(InputError, match="revision"):
        D2LLM.from_pretrained(saved, revision="main")


@pytest.mark.parametrize("kept", [0, 7, 100, 2000])
def test_a_truncated_file_is_a_format_error(saved: Path, kept: int) -> None:
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    with pytest.raises(FormatError, match=r"model\.safetensors"):
        D2LLM.from_pretrained(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("iem.linear2.bias"), "1 missing weights, such as 'iem.linear2.bias'"),
        (lambda w: w.update(extra=torch.zeros(1)), "1 unexpected weights, such as 'extra'"),
        (lambda w: w.update({"pma.S": torch.zeros(1, 1, 3)}), r"pma.S: expected shape \(1, 1, 32\), got \(1, 1, 3\)"),
    ],
)
def test_weights_that_do_not_fit_are_named(saved: Path, change: object, message: str) -> None:
    weights = load_file(saved / "model.safetensors")
    change(weights)
    save_file(weights, saved / "model.safetensors")
    with pytest.raises(FormatError, match=message):
        D2LLM.from_pretrained(saved)


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": "llama"}'])
def test_another_configuration_is_a_format_error(saved: Path, text: str) -> None:
    (saved / "config.json").write_text(text)
    with pytest.raises(FormatError, match=r"config\.json"):
        D2LLM.from_pretrained(saved)


def test_a_failed_save_leaves_the_old_file(student: D2LLM, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (saved / "model.safetensors").read_bytes()

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("d2llm.student.checkpoint.save_file", full_disk)
    with pytest.raises(OSError, match="No space"):
        student.save_pretrained(saved)
    assert (saved / "model.safetensors").read_bytes() == before
    assert sorted(path.name for path in saved.iterdir()) == ["config.json", "model.safetensors"]
    assert issubclass(FormatError, D2LLMError)
