"""What the extras offer: no other is offered, each brings what it names, and what it is for can be imported."""

import importlib
import importlib.metadata
import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
#: What each is for, and what that imports when it is called; nothing where only tools of this repository need it.
EXTRAS = {
    "bench": [],
    "demo": ["d2llm.demo.picture", "d2llm.evaluation.picture"],
    "dev": [],
    "eval": ["d2llm.evaluation.embedders", "sentence_transformers"],
    "faiss": ["d2llm.index.engines", "faiss"],
    "kernels": [],
    "mteb": ["d2llm.integrations.mteb"],
    "onnx": ["d2llm.export.onnx", "onnx", "onnxscript"],
    "parquet": ["d2llm.data.rows", "pyarrow.parquet"],
    "ray": ["d2llm.cluster"],
    "serve": ["d2llm.serve.app", "prometheus_client", "uvicorn"],
    "st": ["d2llm.integrations.sentence_transformers"],
    "train": ["torch.utils.tensorboard"],
    "triton": ["triton"],
}


def offered() -> dict[str, list[Requirement]]:
    """The extras as pyproject.toml has them: Python 3.10 reads no TOML, and what is installed may be older."""
    table = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1].split("\n[")[0]
    found = re.findall(r"^(\w+) = (\[.*?\])$", table, re.MULTILINE | re.DOTALL)
    return {name: [Requirement(each) for each in re.findall(r'"([^"]+)"', listed)] for name, listed in found}


def test_no_other_is_offered() -> None:
    assert offered().keys() == EXTRAS.keys()


@pytest.mark.parametrize("extra", [name for name, modules in EXTRAS.items() if modules])
def test_what_it_is_for_can_be_imported(extra: str) -> None:
    pytest.importorskip("openai", reason="what extras bring is in the environment of make test-integrations alone")
    if extra == "mteb" and sys.version_info < (3, 11):
        pytest.skip("MTEB 2 asks for Python 3.11")
    for need in offered()[extra]:
        if need.marker is None or need.marker.evaluate():
            assert importlib.metadata.version(need.name) in need.specifier, need
    for module in EXTRAS[extra]:
        importlib.import_module(module)


def test_the_oldest_that_are_tested_are_the_floors() -> None:
    named = re.findall(r'"([\w.-]+)>=([\w.]+)', (ROOT / "pyproject.toml").read_text())
    floors: dict[str, Version] = {}
    for name, version in named:
        floors[name] = max(Version(version), floors.get(name, Version("0")))
    lines = (ROOT / "tests/integrations/oldest.txt").read_text().splitlines()[1:]
    for need in map(Requirement, lines):
        (pinned,) = need.specifier
        assert pinned.operator == "==" and Version(pinned.version) == floors[need.name], need
