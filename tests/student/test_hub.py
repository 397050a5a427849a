"""A student on the hub: uploaded with its card, found by its name, and nothing of this machine in what others get."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_hub import COMMIT, FakeHub
from huggingface_hub import ModelCard

from d2llm.errors import FormatError, InputError, MissingError
from d2llm.evaluation.compare import Comparison, Contrast, Row
from d2llm.evaluation.significance import Difference
from d2llm.student import D2LLM, hub
from d2llm.teacher.model import Teacher
from d2llm.teacher.templates import Template
from d2llm.training.config import DataConfig, TrainConfig

TEXTS = ["read the file", "open the socket of x y", "z"]


@pytest.fixture(scope="module")
def student(base_model: str) -> D2LLM:
    return D2LLM.create(base_model, lora_r=2, iem_hidden=16)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    made = FakeHub(tmp_path / "cache")
    monkeypatch.setattr(hub, "HfApi", made)
    return made


def load(fake: FakeHub, name: str, revision: str | None = None) -> D2LLM:
    """By the real client, out of its cache."""
    return D2LLM.from_pretrained(name, revision=revision, cache_dir=fake.cache, local_files_only=True)


def test_it_comes_back_by_its_name(student: D2LLM, fake: FakeHub, tmp_path: Path) -> None:
    address = student.push_to_hub("user/student", revision="next", private=True, token="secret", save_base=True)
    assert address.endswith(COMMIT)
    assert {("token", "secret"), ("private", True), ("branch", "next")} <= set(fake.asked)
    loaded = load(fake, "user/student", "next")
    np.testing.assert_array_equal(loaded.encode(TEXTS), student.encode(TEXTS))
    assert loaded.fingerprint() == student.fingerprint()
    files = [file for file in fake.cache.rglob("*") if file.suffix in (".json", ".md")]
    assert len(files) > 3 and not [file for file in files if "/tmp" in file.read_text() or "secret" in file.read_text()]
    with pytest.raises(MissingError, match="user/student: no such folder; .*the hub"):
        load(fake, "user/student", "other")


def test_a_base_of_this_machine_is_not_named_to_others(student: D2LLM, fake: FakeHub) -> None:
    with pytest.raises(InputError, match="base_model: .*save_base=True or merged=True"):
        student.push_to_hub("user/student")
    student.push_to_hub("user/merged", merged=True, head_dtype=torch.float16)
    found = load(fake, "user/merged")
    assert found.config.lora_r == 0 and found.encode(TEXTS).shape == (3, 32)


def test_the_card_tells_of_run_and_results(student: D2LLM, fake: FakeHub, tmp_path: Path) -> None:
    run, results = tmp_path / "run", tmp_path / "results.json"
    run.mkdir()
    data = DataConfig(
        train="/data/mine.jsonl", teacher={"asym": "/data/s.safetensors"}, teacher_header={"model": "a/llm"}
    )
    (run / "training.json").write_text(json.dumps(asdict(TrainConfig("/runs/first", base_model="x", data=data))))
    (run / "outcome.json").write_text(json.dumps({"step": 120, "mrr": 0.51234, "start_mrr": 0.4}))
    difference = Contrast("student", "BM25", "mrr", Difference(value=0.1, low=0.05, high=0.15, p=0.01))
    table = Comparison((Row("BM25", {"mrr": 0.4}), Row("student", {"mrr": 0.5}, {"mrr": 0.01})), (difference,))
    table.save(results)
    assert Comparison.read(results) == table
    student.push_to_hub("user/student", save_base=True, run=run, results=results, license="apache-2.0")
    card = ModelCard.load(next(fake.cache.rglob("README.md")))
    assert card.data.license == "apache-2.0" and card.data.library_name == "d2llm" and card.data.base_model is None
    for told in (
        'D2LLM.from_pretrained("user/student")',
        "examples: mine.jsonl; 8 hard negatives each",
        "teacher: a/llm, scores in asym: s.safetensors",
        "alpha 1.0",
        "validation MRR: 0.5123 at step 120",
        "| student | **0.500 ±0.010** |",
        "+0.050 to +0.150",
    ):
        assert told in card.text
    assert "/data" not in card.text and "/runs" not in card.text and "/tmp" not in card.text
    (run / "training.json").write_text("{}")
    with pytest.raises(FormatError, match="not the settings of a run"):
        student.push_to_hub("user/student", save_base=True, run=run)
    results.write_text("[]")
    with pytest.raises(FormatError, match="not the results of an evaluation"):
        student.push_to_hub("user/student", save_base=True, results=results)


def test_what_is_neither_a_folder_nor_on_the_hub_is_said(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"no such folder; expected a student with [\w. ]+$"):
        D2LLM.from_pretrained(tmp_path / "nothing")
    with pytest.raises(MissingError, match="or the name of one on the hub"):
        D2LLM.from_pretrained("user/nothing", cache_dir=tmp_path)


def test_a_base_beside_the_student_may_move_with_it(student: D2LLM, base_model: str, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    student.save_pretrained(first / "student")
    config = json.loads((first / "student" / "config.json").read_text())
    (first / "student" / "config.json").write_text(json.dumps({**config, "base_model": "../base"}))
    shutil.copytree(base_model, first / "base")
    first.rename(second)
    loaded = D2LLM.from_pretrained(second / "student")
    assert loaded.config.base_model == str(second / "base") and loaded.fingerprint() == student.fingerprint()


def test_the_decoder_is_loaded_as_asked(base_model: str, student: D2LLM, tmp_path: Path) -> None:
    student.save_pretrained(tmp_path)
    assert student.backbone.config._attn_implementation == "d2llm"
    loaded = D2LLM.from_pretrained(tmp_path, attn_implementation="eager", device_map="cpu")
    assert loaded.backbone.config._attn_implementation == "eager"
    np.testing.assert_allclose(loaded.encode(TEXTS), student.encode(TEXTS), atol=1e-5)
    with pytest.raises(ValueError, match="device_map"):
        D2LLM.from_pretrained(tmp_path, device_map="nowhere")
    letters = Template(name="letters", task="asym", text="{query} {passage} ?", yes="y", no="n")
    teacher = Teacher.from_pretrained(base_model, attn_implementation="sdpa", device_map="cpu", templates=[letters])
    assert teacher.decoder.config._attn_implementation == "sdpa"
    with pytest.raises(MissingError, match="revision|branch|commit|offline|cache"):
        D2LLM.create("user/decoder", base_revision="v2")
