"""Training data and corpora in the folders that Hugging Face's datasets saves, written by itself."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("datasets")

import pyarrow as pa
from datasets import Dataset, DatasetDict
from typer.testing import CliRunner

from d2llm.cli import app
from d2llm.data.columnar import object_rows
from d2llm.data.example import Example
from d2llm.data.example_file import open_examples
from d2llm.data.importers import read_any, sniff
from d2llm.data.jsonl import read_corpus, read_examples
from d2llm.errors import FormatError, InputError, MissingError

ROWS = [{"query": f"q{i}", "positive": f"p{i}", "negatives": ["n"] * (i % 2), "task": None} for i in range(7)]
EXAMPLES = [Example(f"q{i}", f"p{i}", ("n",) * (i % 2)) for i in range(7)]


def made(rows: list[dict[str, Any]]) -> Dataset:
    # A fingerprint that is given needs not be made by pickling the table, which not every pyarrow allows.
    return Dataset(pa.Table.from_pylist(rows), fingerprint="rows")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made(ROWS).save_to_disk(tmp_path / "own", num_shards=2)
    return tmp_path / "own"


def test_rows_of_every_file_are_read_in_their_order(folder: Path, tmp_path: Path) -> None:
    assert len(list(folder.glob("*.arrow"))) == 2 and sniff(folder) == "d2llm"
    assert read_any(folder) == list(open_examples(folder)) == EXAMPLES
    done = CliRunner().invoke(app, ["data", "convert", str(folder), str(tmp_path / "out.jsonl")])
    assert done.exit_code == 0 and read_examples(tmp_path / "out.jsonl") == EXAMPLES
    made(ROWS).select([5, 1], new_fingerprint="some").save_to_disk(tmp_path / "some")
    assert read_any(tmp_path / "some") == [EXAMPLES[5], EXAMPLES[1]]
    triplets = [{"anchor": "a", "positive": "p", "negative": "n"}, {"anchor": "b", "positive": "p", "negative": None}]
    made(triplets).save_to_disk(tmp_path / "triplets")
    assert read_any(tmp_path / "triplets") == [Example("a", "p", ("n",)), Example("b", "p")]
    made([{"_id": "d", "text": "x"}]).save_to_disk(tmp_path / "corpus")
    assert read_corpus(tmp_path / "corpus") == [("d", "x")]


def test_one_of_several_splits_is_to_be_named(tmp_path: Path) -> None:
    DatasetDict(train=made(ROWS), test=made(ROWS[:1])).save_to_disk(tmp_path / "both")
    with pytest.raises(InputError, match=r"both: .* the splits \['test', 'train'\]; name the folder of one"):
        read_any(tmp_path / "both")
    assert read_any(tmp_path / "both" / "test") == EXAMPLES[:1]


def test_what_is_damaged_is_named(folder: Path) -> None:
    rows, others = sorted(folder.glob("*.arrow"))
    whole = rows.read_bytes()
    rows.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FormatError, match=r"own: not a saved dataset, or damaged"):
        list(object_rows(folder))
    others.unlink()
    with pytest.raises(MissingError, match=rf"{others.name}: file not found"):
        list(object_rows(folder))
    (folder / "state.json").write_text('{"_data_files": ["rows.arrow"]}')
    with pytest.raises(FormatError, match=r"state\.json: expected _data_files"):
        list(object_rows(folder))
