"""The committed document shows the figures of the committed report."""

from pathlib import Path

import pytest

from benchmarks.document import DOCUMENT, blocks, replaced
from benchmarks.plots import draw
from d2llm.files import read_json

REPORT = Path(__file__).parents[2] / "benchmarks" / "results" / "cpu-amd-epyc-2-threads" / "report.json"


def test_the_tables_are_those_of_the_report():
    text = DOCUMENT.read_text(encoding="utf-8")
    assert replaced(text, blocks(read_json(REPORT)), DOCUMENT.name) == text


def test_a_document_without_the_marks_is_refused():
    with pytest.raises(ValueError, match="expected the marks of 'machine' once, found them 0 times"):
        replaced("# Benchmarks\n", blocks(read_json(REPORT)), DOCUMENT.name)


def test_pictures(tmp_path):
    written = draw(read_json(REPORT), tmp_path)
    assert [path.name for path in written] == ["roofline.png", "speedup.png", "latency.png", "memory.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)
