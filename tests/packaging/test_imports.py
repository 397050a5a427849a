"""What is imported of others: by the kernels torch alone, by the commands what they need, when they need it."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from d2llm.cli.failures import explain
from d2llm.requirements import needed

ROOT = Path(__file__).parents[2]

#: Hides every installed module but those of the packages named, of what they require, and the project's own.
HIDE = """
import importlib.metadata, re, sys

def require(name):
    name = re.match(r"[\\w.-]+", name)[0].lower().replace("_", "-")
    if name in kept:
        return
    kept.add(name)
    try:
        needs = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return
    for need in needs:
        if "extra ==" not in need:
            require(need)

kept = set()
for name in sys.argv[1:]:
    require(name)
for module, names in importlib.metadata.packages_distributions().items():
    if kept.isdisjoint(name.lower().replace("_", "-") for name in names) and not module.startswith("d2llm"):
        sys.modules[module] = None
"""
KERNELS = """
import torch
import d2llm_kernels as dk

x = torch.randn(3, 5, 8, requires_grad=True)
pooled = dk.PMA(8, 2)(x, torch.ones(3, 5, dtype=torch.int64))
dk.IEM(8, hidden=16).score_all(pooled, pooled, 0).sum().backward()
assert x.grad.isfinite().all() and "numpy" not in [name for name, module in sys.modules.items() if module]
"""
MEASURE = """
import d2llm_kernels

assert "d2llm_kernels.measure" not in sys.modules
from d2llm_kernels.measure import run, writing

assert "d2llm" not in sys.modules
"""
LIGHT = "import d2llm.index, d2llm.student, d2llm.teacher.model, d2llm.training"


def run(code: str, *kept: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", HIDE + code, *kept], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_kernels_need_torch_alone() -> None:
    run(KERNELS, "torch")


def test_what_measures_them_needs_no_more_and_is_imported_when_it_is_asked_for() -> None:
    run(MEASURE, "torch")


def test_what_compares_searches_by_words_and_draws_is_imported_when_it_is_needed() -> None:
    run(LIGHT, *({each.name for each in needed()} - {"gguf", "scikit-learn", "scipy"}))


@pytest.mark.parametrize(
    ("module", "advice"),
    [("matplotlib.figure", '"d2llm[demo]"'), ("sklearn", '"scikit-learn>='), ("yaml", '"pyyaml>=')],
)
def test_what_is_not_installed_is_named_with_what_brings_it(module: str, advice: str) -> None:
    message = explain(ModuleNotFoundError(f"No module named {module!r}", name=module))
    assert message is not None and f"pip install --upgrade {advice}" in message


def test_a_module_that_nothing_asks_for_is_a_fault() -> None:
    assert explain(ModuleNotFoundError("No module named 'd2llm.nowhere'", name="d2llm.nowhere")) is None


@pytest.mark.parametrize(
    ("own", "module", "extra"),
    [
        ("integrations.sentence_transformers", "sentence_transformers", "st"),
        ("integrations.mteb", "mteb", "mteb"),
        ("cluster", "ray", "ray"),
    ],
)
def test_what_is_for_another_library_names_the_extra_that_brings_it(
    own: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, f"d2llm.{own}", raising=False)
    with pytest.raises(ModuleNotFoundError, match=rf"{module} is not installed .*\"d2llm\[{extra}\]\""):
        importlib.import_module(f"d2llm.{own}")
