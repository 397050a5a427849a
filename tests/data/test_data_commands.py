"""d2llm data: what a file holds, in another format, in two parts."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from d2llm.cli import app
from d2llm.data.checking import count
from d2llm.data.example import Example
from d2llm.data.importers import iterate_any, read_any
from d2llm.data.jsonl import read_examples, write_examples
from d2llm.errors import FormatError, InputError

EXAMPLES = [Example(f"query {i}", f"passage {i}", ("other",) * (i % 2)) for i in range(40)]


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["data", *map(str, arguments)])


def test_check_counts_what_a_file_holds(tmp_path: Path) -> None:
    scored = Example("q", "positive", ("n", "mm"), "sym", ((1.0, 0.0),) * 3)
    write_examples(tmp_path / "train.jsonl", [*EXAMPLES, scored, EXAMPLES[3]])
    done = run("check", tmp_path / "train.jsonl")
    assert done.exit_code == 0, done.output
    assert "42 (41 asym, 1 sym), 1 of them stand before" in done.output
    assert "20 examples have none" in done.output and "of 1 examples" in done.output
    assert "23, 5 characters on average, 5 at most" in done.output


def test_check_names_faults_and_how_many_there_are(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    lines = ['{"query": "q", "positive": "p"}', '{"query": "q"}', *["{"] * 30]
    path.write_text("\n".join(lines))
    with pytest.raises(FormatError) as caught:
        count(iterate_any(path, "d2llm"))
    message = str(caught.value)
    assert f"{path}:2: positive: missing" in message and f"{path}:21: not valid JSON" in message
    assert f"{path}:22:" not in message and message.endswith("... and 11 more")


def test_rows_are_read_as_they_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text("query\tpositive\nq1\tp1\nq2\nq3\tp3\n")
    rows = iterate_any(path, scores="drop")
    assert next(rows) == Example("q1", "p1")
    with pytest.raises(FormatError, match=r"pairs\.tsv:3: expected 2 columns, got 1"):
        next(rows)


def test_nothing_is_written_of_a_faulty_file(tmp_path: Path) -> None:
    (tmp_path / "pairs.tsv").write_text("query\tpositive\nq1\tp1\nq2\n")
    done = run("convert", tmp_path / "pairs.tsv", tmp_path / "out.jsonl")
    assert done.exit_code == 2 and not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("suffix", ["tsv", "csv"])
def test_a_table_without_a_header_keeps_its_first_row(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"pairs.{suffix}"
    separator = "," if suffix == "csv" else "\t"
    path.write_text("\n".join(separator.join(row) for row in (["how so", "so", "no"], ["why", "because", ""])))
    with pytest.raises(FormatError, match=rf"pairs\.{suffix}:1: columns: .*name the format 'triples'"):
        read_any(path)
    assert read_any(path, "triples") == [Example("how so", "so", ("no",)), Example("why", "because")]


def test_triples_of_ids(tmp_path: Path) -> None:
    (tmp_path / "ids.tsv").write_text("7\t1\t2\n8\t2\t1\n")
    (tmp_path / "queries.tsv").write_text("7\tseven\n8\teight\n9\tnine\n")
    (tmp_path / "collection.tsv").write_text("1\tone\n2\ttwo\n3\tthree\n")
    files = {"queries": tmp_path / "queries.tsv", "corpus": tmp_path / "collection.tsv"}
    expected = [Example("seven", "one", ("two",)), Example("eight", "two", ("one",))]
    assert read_any(tmp_path / "ids.tsv", "triples", **files) == expected
    options = ["--format", "triples", "--queries", files["queries"], "--corpus", files["corpus"]]
    assert run("convert", tmp_path / "ids.tsv", tmp_path / "out.jsonl", *options).exit_code == 0
    assert read_examples(tmp_path / "out.jsonl") == expected
    (tmp_path / "ids.tsv").write_text("7\t1\t2\n8\t2\t5\n")
    with pytest.raises(FormatError, match=r"ids\.tsv:2: passage: '5' is not in .*collection\.tsv"):
        read_any(tmp_path / "ids.tsv", "triples", **files)
    with pytest.raises(InputError, match="corpus, queries: expected both or neither"):
        read_any(tmp_path / "ids.tsv", "triples", queries=files["queries"])


def test_split_holds_out_what_a_run_would(tmp_path: Path) -> None:
    source, train, held_out = (tmp_path / f"{name}.jsonl" for name in ("all", "train", "held"))
    write_examples(source, EXAMPLES)
    done = run("split", source, train, held_out, "--share", 0.25)
    assert done.exit_code == 0, done.output
    assert len(read_examples(held_out)) == 10
    parts = [json.dumps(each.query) for file in (train, held_out) for each in read_examples(file)]
    assert sorted(parts) == sorted(json.dumps(each.query) for each in EXAMPLES)
    assert run("split", source, train, held_out, "--share", 1).exit_code == 2


def test_split_of_a_file_that_stays_where_it_is_may_write_over_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("d2llm.data.example_file.IN_MEMORY", 0)
    source, train = tmp_path / "all.jsonl", tmp_path / "train.jsonl"
    write_examples(source, EXAMPLES)
    done = run("split", source, train, source, "--share", 0.25)
    assert done.exit_code == 0, done.output
    assert len(read_examples(source)) == 10 and len(read_examples(train)) == 30
