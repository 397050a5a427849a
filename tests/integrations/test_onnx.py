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

TEXTS = ["a", "read the file of x", "open the socket " * 30, "close the file of a b c", "z z"]


@pytest.fixture(scope="module", params=["decoder", "shipped encoder"])
def pair(request: pytest.FixtureRequest, student: D2LLM, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A student and the folder of its graphs."""
    path = tmp_path_factory.mktemp("onnx")
    if request.param == "decoder":
        # Of a layer in the middle, LoRA merged.
        student = D2LLM.create(save_base(path / "base"), lora_r=2, iem_hidden=16, hidden_layer=2, init="xavier")
        for name, weight in student.named_parameters():
            if "lora_B" in name:
                torch.nn.init.constant_(weight, 0.02)
    export_onnx(student, path / "graphs")
    return student, path / "graphs"


def session(path: Path) -> Any:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def test_embeddings_and_logits_are_the_student_s(pair: tuple[D2LLM, Path]) -> None:
    student, folder = pair
    encoder = session(folder / "encoder.onnx")
    about = encoder.get_modelmeta().custom_metadata_map
    tokenizer = AutoTokenizer.from_pretrained(folder)
    expected = {kind: student.encode(TEXTS, kind) for kind in ("query", "passage")}
    vectors = {}
    for kind, own in expected.items():
        length = int(about[f"{kind}_length"])
        found = []
        for rows in (slice(0, 1), slice(1, 3), slice(3, 5)):
            tokens = tokenizer(TEXTS[rows], padding=True, truncation=True, max_length=length, return_tensors="np")
            given = {name: tokens[name].astype(np.int64) for name in ("input_ids", "attention_mask")}
            found.append(encoder.run(None, given)[0])
        vectors[kind] = np.concatenate(found)
        np.testing.assert_allclose(vectors[kind], own, rtol=0, atol=2e-5 * np.abs(own).max())
    for task in ("asym", "sym"):
        scorer = session(folder / f"iem-{task}.onnx")
        for count in (1, 5):
            given = {"query": vectors["query"][:count], "passage": vectors["passage"][::-1][:count].copy()}
            logits = scorer.run(None, given)[0]
            own = student.score(TEXTS[:count], TEXTS[::-1][:count], task)
            np.testing.assert_allclose(logits, own, rtol=0, atol=1e-4 * max(1, np.abs(own).max()))


def test_the_command_and_what_it_refuses(student: D2LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr("d2llm.cli.export.load_student", lambda folder: student)
    monkeypatch.setattr("d2llm.export.onnx.export_onnx", lambda *given: made.append(given))
    done = CliRunner().invoke(app, ["export", "onnx", "shipped", str(tmp_path / "graphs")])
    assert done.exit_code == 0 and made == [(student, tmp_path / "graphs")]
    with pytest.raises(InputError, match="folder: expected one that is not there yet"):
        export_onnx(student, tmp_path)
