"""What the extras offer: each is known here, brings what it names, and what it is for can be imported."""

import importlib
import importlib.metadata
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
#: What each is for: a module of this package, or None for what no code imports by name.
EXTRAS = {
    "bench": None,  # Peers of the benchmarks.
    "demo": "d2llm.evaluation.picture",
    "dev": None,
    "eval": "d2llm.evaluation.models",
    "faiss": "d2llm.index.ann",
    "kernels": None,  # What compiling needs.
    "mteb": "d2llm.integrations.mteb",
    "onnx": "d2llm.export.onnx",
    "serve": "d2llm.serve.app",
    "st": "d2llm.integrations.sentence_transformers",
    "train": None,  # The trainer writes for TensorBoard where it is there.
    "triton": None,  # The interpreter of the Triton kernels.
}


def offered() -> dict[str, list[Requirement]]:
    table = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1].split("\n[")[0]
    found = re.findall(r"^(\w+) = (\[.*?\])$", table, re.MULTILINE | re.DOTALL)
    return {name: [Requirement(each) for each in re.findall(r'"([^"]+)"', listed)] for name, listed in found}


def test_no_other_is_offered() -> None:
    assert offered().keys() == EXTRAS.keys()


@pytest.mark.parametrize("extra", [name for name, module in EXTRAS.items() if module is not None])
def test_what_it_is_for_can_be_imported(extra: str) -> None:
    if extra == "mteb":
        pytest.importorskip("mteb")
    for need in offered()[extra]:
        assert importlib.metadata.version(need.name) in need.specifier, need
    importlib.import_module(EXTRAS[extra] or "")
    if extra in ("onnx", "demo", "eval"):
        # Imported inside functions.
        for need in offered()[extra]:
            importlib.import_module(need.name.replace("-", "_"))


def test_the_oldest_that_are_tested_are_the_floors() -> None:
    needs = {need.name: need for extra in ("st", "mteb") for need in offered()[extra]}
    found = re.search(r'"(transformers>=[^"]+)"', (ROOT / "pyproject.toml").read_text())
    assert found is not None
    needs["transformers"] = Requirement(found[1])
    lines = (ROOT / "tests/integrations/oldest.txt").read_text().splitlines()[1:]
    assert {line.split("==")[0] for line in lines} == needs.keys()
    for name, version in (line.split("==") for line in lines):
        (floor,) = needs[name].specifier
        assert floor.operator == ">=" and Version(version) == Version(floor.version)
