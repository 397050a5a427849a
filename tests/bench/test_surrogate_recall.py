"""The table of what a surrogate finds: shares by their definition, measured once, written between its marks."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import surrogate_recall
from d2llm.data.example import Example
from d2llm.data.validation import Validation
from d2llm.index import surrogate
from d2llm.student import D2LLM
from tests.conftest import TEXTS


def test_shares_are_of_the_best_ten() -> None:
    exact = np.arange(60, dtype=np.float32)[None]
    rough = exact.copy()
    rough[0, 55:] = -1
    np.testing.assert_allclose(surrogate_recall.shares(exact, rough), [[0.5, 0.5, 1, 1, 1]])


def test_it_is_measured_once(base_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    D2LLM.create(base_model, lora_r=2, iem_hidden=8).save_pretrained(tmp_path / "student")
    passages = tuple(f"def {text}" for text in TEXTS)
    data = Validation(tuple(TEXTS[:6]), passages, tuple(frozenset({i}) for i in range(6)))
    monkeypatch.setattr(surrogate, "_STEPS", 3)
    monkeypatch.setattr(surrogate_recall, "sets", lambda cosqa: {"everyday": lambda: data})
    pairs = [Example(f"{text} again", text) for text in TEXTS]
    monkeypatch.setattr(surrogate_recall, "standard_library_pairs", lambda: pairs)
    monkeypatch.setattr(surrogate_recall, "hold_out", lambda pairs: (pairs, []))
    monkeypatch.setattr(surrogate_recall, "validation_pairs", list)
    document = tmp_path / "index.md"
    document.write_text("<!-- surrogate-everyday -->\nold\n<!-- /surrogate-everyday -->\n", encoding="utf-8")
    monkeypatch.setattr(surrogate_recall, "DOCUMENT", document)
    arguments = ["--work", str(tmp_path / "work"), "--student", str(tmp_path / "student"), "--rank", "4", "--write"]
    assert surrogate_recall.main(arguments) == 0
    written = document.read_text(encoding="utf-8")
    assert "| surrogate, R=4 | " in written and "| cosine | " in written and "old" not in written
    monkeypatch.setattr(surrogate_recall, "fit_maps", lambda *_: pytest.fail("measured again"))
    assert surrogate_recall.main(arguments) == 0 and document.read_text(encoding="utf-8") == written
