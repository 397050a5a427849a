"""The examples of docs/ecosystem.md run as they stand there, with the real packages."""

import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mteb")

import numpy as np
from huggingface_hub import constants

from d2llm import D2LLM, Index
from d2llm.data.pairs import LabelledPairs
from d2llm.integrations.pairs import PairScorer
from d2llm.shipped import STUDENT
from d2llm.student import hub
from tests.student.fake_hub import FakeHub

PAGE = (Path(__file__).parents[2] / "docs" / "ecosystem.md").read_text()
SECTIONS = {
    part.partition("\n")[0]: re.findall(r"```python\n(.*?)```", part, re.DOTALL) for part in PAGE.split("\n## ")
}
SHARED = SECTIONS.pop("# Where a student fits")
FITS = "def add(a, b): return the sum of two numbers"


def run(section: str, student: D2LLM) -> dict[str, Any]:
    """The names that a section leaves behind."""
    known = {"Any": Any, "D2LLM": D2LLM, "Index": Index, "LabelledPairs": LabelledPairs, "PairScorer": PairScorer}
    names = {**known, "STUDENT": STUDENT, "student": student}
    for block in [*SHARED, *SECTIONS[section]]:
        exec(block, names)
    return names


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, student: D2LLM) -> None:
    monkeypatch.chdir(tmp_path)
    # The examples load the shipped student anew, which takes seconds.
    load = D2LLM.from_pretrained
    monkeypatch.setattr(D2LLM, "from_pretrained", lambda path, **how: student if path == STUDENT else load(path, **how))


def test_each_is_short() -> None:
    assert all(blocks for name, blocks in SECTIONS.items() if name != "Wheels")
    for block in (block for blocks in SECTIONS.values() for block in blocks):
        lines = [line for line in block.splitlines() if line and "import" not in line]
        assert len(re.findall(r"^class ", block, re.MULTILINE)) * 10 >= len(lines) or len(lines) < 10


def test_hub(student: D2LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "HfApi", FakeHub(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    loaded = run("Hugging Face hub", student)["student"]
    assert loaded is not student and loaded.backbone.config._attn_implementation == "sdpa"
    np.testing.assert_allclose(loaded.encode([FITS]), student.encode([FITS]), atol=1e-4)


def test_sentence_transformers(student: D2LLM) -> None:
    names = run("sentence-transformers", student)
    assert names["scores"].argmax() == 1 and names["figures"]["iem_mrr@10"] == 1
    assert names["logits"].shape == (2,) and names["hits"][0][0]["corpus_id"] == 1 and names["best"][0]["text"] == FITS


def test_transformers(student: D2LLM) -> None:
    names = run("transformers", student)
    assert names["loaded"].dtype == names["torch"].bfloat16 and names["loaded"].config.lora_r == 0


def test_onnx(student: D2LLM) -> None:
    pytest.importorskip("onnxruntime")
    names = run("ONNX", student)
    assert names["logits"] == pytest.approx(student.score([names["query"]] * 2, names["documents"]), abs=1e-3)


def test_vespa(student: D2LLM) -> None:
    names = run("Vespa", student)
    assert [each["fields"]["text"] for each in names["operations"]] == names["documents"]
    assert len(names["body"]["input.query(projected)"]) == student.config.iem_hidden


def test_mteb(student: D2LLM) -> None:
    assert run("MTEB", student)["spearman"] == 1


def test_vector_databases(student: D2LLM) -> None:
    pytest.importorskip("lancedb")
    names = run("Vector databases", student)
    assert names["hits"][0].text == FITS and {row["id"] for row in names["nearest"]} == {"unlink", "add"}


def test_langchain(student: D2LLM) -> None:
    assert run("LangChain", student)["found"][0].page_content == FITS


def test_llama_index(student: D2LLM) -> None:
    assert run("LlamaIndex", student)["nodes"][0].get_content() == FITS


def test_haystack(student: D2LLM) -> None:
    assert run("Haystack", student)["ranked"]["documents"][0].content == FITS
