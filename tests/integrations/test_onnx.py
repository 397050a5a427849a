"""ONNX graphs of a student in onnxruntime: the same embeddings and logits, at any batch and length."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

import onnxruntime
import torch
from transformers import AutoTokenizer
from typer.testing import CliRunner

from d2llm import D2LLM
from d2llm.cli import app
from d2llm.errors import InputError
from d2llm.export.onnx import export_onnx
from tests.conftest import save_base

TEXTS = ["a", "read the file of x", "open the socket " * 30, "close the file of <eos> a b c", "z z"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[D2LLM, Path]:
    """A student and the folder of its graphs; the shipped one, an encoder, is exported by docs/ecosystem.md."""
    path = tmp_path_factory.mktemp("onnx")
    # Of a layer in the middle, LoRA merged.
    how = {"lora_r": 2, "num_layers": 2, "hidden_layer": 1, "iem_hidden": 16, "init": "xavier"}
    student = D2LLM.create(save_base(path / "base"), **how)
    with torch.no_grad():
        for name, weight in student.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.02)
    export_onnx(student, path / "graphs")
    return student, path / "graphs"


def session(path: Path) -> Any:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def embedded(encoder: Any, folder: Path, kind: str) -> np.ndarray:
    """Embeddings of TEXTS, in batches of one, two and two, each of its own length."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    length = int(encoder.get_modelmeta().custom_metadata_map[f"{kind}_length"])
    found = []
    for rows in (slice(0, 1), slice(1, 3), slice(3, 5)):
        how = {"padding": True, "truncation": True, "max_length": length, "split_special_tokens": True}
        tokens = tokenizer(TEXTS[rows], return_tensors="np", **how)
        found.append(encoder.run(None, {name: tokens[name] for name in ("input_ids", "attention_mask")})[0])
    return np.concatenate(found)


def test_embeddings_and_logits_are_the_student_s(exported: tuple[D2LLM, Path]) -> None:
    student, folder = exported
    encoder = session(folder / "encoder.onnx")
    vectors = {kind: embedded(encoder, folder, kind) for kind in ("query", "passage")}
    for kind, found in vectors.items():
        np.testing.assert_allclose(found, student.encode(TEXTS, kind), rtol=0, atol=1e-5)
    for task in ("asym", "sym"):
        scorer = session(folder / f"iem-{task}.onnx")
        for count in (1, 5):
            given = {"query": vectors["query"][:count], "passage": vectors["passage"][::-1][:count].copy()}
            expected = student.score(TEXTS[:count], TEXTS[::-1][:count], task)
            np.testing.assert_allclose(scorer.run(None, given)[0], expected, rtol=0, atol=1e-5)


def test_the_command_and_what_it_refuses(student: D2LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr("d2llm.cli.export.load_student", lambda folder: student)
    monkeypatch.setattr("d2llm.export.onnx.export_onnx", lambda *given: made.append(given))
    done = CliRunner().invoke(app, ["export", "onnx", "shipped", str(tmp_path / "graphs")])
    assert done.exit_code == 0 and made == [(student, tmp_path / "graphs")]
    with pytest.raises(InputError, match="folder: expected one that is not there yet"):
        export_onnx(student, tmp_path)
