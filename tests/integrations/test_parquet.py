"""Training data and corpora in Parquet files, as the hub has them."""

from pathlib import Path

import pytest

pytest.importorskip("pyarrow")

import pyarrow as pa
from pyarrow.parquet import write_table

from d2llm.data.example import Example
from d2llm.data.importers import read_any, sniff
from d2llm.data.jsonl import read_corpus
from d2llm.errors import FormatError


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    return path


def test_each_format_of_objects_is_read_from_columns(tmp_path: Path) -> None:
    own = [
        {"query": "q", "positive": "p", "negatives": ["n"], "task": "sym", "scores": [[1.0, 0.0], [0.0, 2.0]]},
        {"query": "q2", "positive": "p2", "negatives": None, "task": None, "scores": None},
    ]
    file = write(tmp_path / "own.parquet", own)
    assert sniff(file) == "d2llm"
    assert read_any(file) == [Example("q", "p", ("n",), "sym", ((1.0, 0.0), (0.0, 2.0))), Example("q2", "p2")]
    rows = [{"anchor": f"a{i}", "positive": f"p{i}", "negative": None if i else "n"} for i in range(5)]
    found = read_any(write(tmp_path / "st.parquet", rows))
    assert found == [Example("a0", "p0", ("n",)), *(Example(f"a{i}", f"p{i}") for i in range(1, 5))]
    file = write(tmp_path / "flag.parquet", [{"query": "q", "pos": ["p"], "neg": ["n"]}])
    assert read_any(file) == [Example("q", "p", ("n",))]
    inline = {"query": "q", "positive_passages": [{"title": "t", "text": "p"}], "negative_passages": []}
    assert read_any(write(tmp_path / "tevatron.parquet", [inline])) == [Example("q", "t p")]
    assert read_corpus(write(tmp_path / "corpus.parquet", [{"_id": "d", "text": "x"}])) == [("d", "x")]


def test_faults_are_named_by_row(tmp_path: Path) -> None:
    rows = [{"query": "q", "positive": "p"}, {"query": None, "positive": "p"}, {"query": "q", "positive": " "}]
    with pytest.raises(FormatError, match=r"own.parquet:2: query: expected .*\n.*own.parquet:3: positive: expected"):
        read_any(write(tmp_path / "own.parquet", rows), "d2llm")
    broken = tmp_path / "broken.parquet"
    broken.write_bytes((tmp_path / "own.parquet").read_bytes()[:-9])
    with pytest.raises(FormatError, match="broken.parquet: not a Parquet file, or damaged"):
        read_any(broken)
