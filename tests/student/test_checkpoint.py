"""A saved student comes back bit for bit, and a damaged one says what is wrong."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from d2llm.errors import D2LLMError, FormatError, InputError, MissingError
from d2llm.student import D2LLM
from d2llm.student.weights import Header, read_weights

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
    with pytest.raises(InputError, match="subfolder"):
        D2LLM.from_pretrained(saved, subfolder="main")


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


def test_any_flipped_bit_of_the_weights_is_found(saved: Path) -> None:
    file = saved / "model.safetensors"
    whole = file.read_bytes()
    generator = random.Random(0)
    # Every bit of the header, which holds the seal, would take a minute; a hundred of them do.
    header = 8 + int.from_bytes(whole[:8], "little")
    places = [generator.randrange(header) for _ in range(100)] + [
        generator.randrange(header, len(whole)) for _ in range(100)
    ]
    for place in places:
        altered = bytearray(whole)
        altered[place] ^= 1 << generator.randrange(8)
        file.write_bytes(altered)
        with pytest.raises(FormatError, match=r"model\.safetensors"):
            read_weights(file)


@pytest.mark.parametrize("field", ["hidden_layer", "lora_alpha", "pma_ln", "lora_targets", "pma_residual"])
def test_a_configuration_that_the_weights_were_not_saved_with_is_refused(saved: Path, field: str) -> None:
    other = {
        "hidden_layer": 1,
        "lora_alpha": 9,
        "pma_ln": False,
        "lora_targets": ["q_proj"],
        "pma_residual": "projected",
    }
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {field: other[field]}))
    with pytest.raises(FormatError, match=rf"config\.json: {field}: expected .*with which model.safetensors was saved"):
        D2LLM.from_pretrained(saved)


def test_a_student_of_before_the_seal_loads(student: D2LLM, saved: Path) -> None:
    weights = load_file(saved / "model.safetensors")
    save_file(weights, saved / "model.safetensors", metadata={"format": "pt"})
    assert D2LLM.from_pretrained(saved).fingerprint() == student.fingerprint()
    assert Header.read(Path("d2llm/assets/student/model.safetensors")).shapes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w["iem.linear2.bias"].fill_(float("nan")), "iem.linear2.bias: expected finite values, got NaN"),
        (lambda w: w["pma.S"][0, 0, :1].fill_(float("-inf")), "pma.S: expected finite values"),
        (lambda w: w.update({"pma.S": w["pma.S"].long()}), "pma.S: expected F32, F16, BF16, got I64"),
        (lambda w: w.update({"pma.S": w["pma.S"].to(torch.int8)}), "pma.S: expected F32, F16, BF16, got I8"),
        (
            lambda w: w.update({"pma.S:scale": torch.ones(3, 3, 3), "pma.S": w["pma.S"].char()}),
            "not a whole safetensors",
        ),
    ],
)
def test_weights_that_are_no_finite_floats_are_refused(saved: Path, change: object, message: str) -> None:
    weights = load_file(saved / "model.safetensors")
    change(weights)
    save_file(weights, saved / "model.safetensors")
    with pytest.raises(FormatError, match=message):
        D2LLM.from_pretrained(saved)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("iem_hidden", 30000, r"iem.linear1.bias: expected shape \(30000,\), got \(16,\)"),
        ("lora_r", 30000, r"lora_A.*: expected shape \(30000, 32\), got \(4, 32\)"),
        ("lora_r", 0, "expected LoRA of rank 0, got 6 such weights"),
    ],
)
def test_sizes_are_compared_before_a_model_is_built(
    saved: Path, monkeypatch: pytest.MonkeyPatch, field: str, value: int, message: str
) -> None:
    save_file(load_file(saved / "model.safetensors"), saved / "model.safetensors")
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {field: value}))
    monkeypatch.setattr(D2LLM, "assemble", None)
    with pytest.raises(FormatError, match=message):
        D2LLM.from_pretrained(saved)


@pytest.mark.parametrize(
    "change",
    [
        {"lora_alpha": "8"},
        {"pma_ln": "no"},
        {"hidden_layer": None},
        {"lora_dropout": "much"},
        {"base_model": 3},
        {"query_length": 10**30},
        {"num_labels": "many", "lora_targets": 5},
    ],
)
def test_a_field_of_another_kind_is_a_format_error(saved: Path, change: dict) -> None:
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(FormatError, match=rf"config\.json: {list(change)[-1]}: expected"):
        D2LLM.from_pretrained(saved)


def test_targets_that_the_base_lacks_are_named(base_model: str) -> None:
    with pytest.raises(InputError, match=r"lora_targets: \['nothing'\] fit no module of the base"):
        D2LLM.create(base_model, lora_targets=["nothing"])


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": "llama"}'])
def test_another_configuration_is_a_format_error(saved: Path, text: str) -> None:
    (saved / "config.json").write_text(text)
    with pytest.raises(FormatError, match=r"config\.json"):
        D2LLM.from_pretrained(saved)


def test_a_failed_save_leaves_the_old_file(student: D2LLM, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (saved / "model.safetensors").read_bytes()

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("d2llm.student.weights.write_tensors", full_disk)
    with pytest.raises(OSError, match="No space"):
        student.save_pretrained(saved)
    assert (saved / "model.safetensors").read_bytes() == before
    assert sorted(path.name for path in saved.iterdir()) == ["config.json", "model.safetensors"]
    assert issubclass(FormatError, D2LLMError)
