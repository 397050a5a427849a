"""TREC runs as teachers."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from d2llm.cli import app
from d2llm.data.example import Example
from d2llm.data.importers import read_any
from d2llm.data.jsonl import read_examples
from d2llm.errors import FormatError, InputError

RUN = """\
q2 Q0 d3 1 0.5 ranker
q1 Q0 d1 2 7.25 ranker
q1 Q0 d3 3 -1 ranker
q1 Q0 d2 1 9.5 ranker
q1 Q0 d4 4 -2 ranker
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "r.run").write_text(RUN)
    (tmp_path / "queries.tsv").write_text("q1\topen a file\nq2\tclose it\nq3\tunasked\n")
    rows = [("d1", "read"), ("d2", "open"), ("d3", "write"), ("d4", "open"), ("d9", "unfound")]
    (tmp_path / "corpus.jsonl").write_text("".join(f'{{"_id": "{i}", "text": "{text}"}}\n' for i, text in rows))
    return tmp_path


def read(folder: Path) -> list[Example]:
    return read_any(folder / "r.run", "trec", queries=folder / "queries.tsv", corpus=folder / "corpus.jsonl")


def test_a_query_becomes_a_group_in_the_order_of_the_scores(files: Path) -> None:
    # d4 is d2's text again, and a query with one passage has nothing to order.
    scores = ((9.5, 0.0), (7.25, 0.0), (-1.0, 0.0))
    assert read(files) == [Example("open a file", "open", ("read", "write"), scores=scores)]


def test_it_is_converted_with_its_scores(files: Path) -> None:
    names = [str(files / name) for name in ("r.run", "out.jsonl", "queries.tsv", "corpus.jsonl")]
    arguments = ["data", "convert", *names[:2], "--format", "trec", "--queries", names[2], "--corpus", names[3]]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "1 examples; next: d2llm data check" in done.output
    assert read_examples(files / "out.jsonl") == read(files)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("r.run", RUN + "q1 Q0 d7 5 -3 ranker\n", r"passage 'd7' and 0 more are not in .*corpus\.jsonl"),
        ("r.run", "q1 Q0 d2 1 9.5 ranker\nq1 Q0 d4 2 9 ranker\n", "two passages of different texts"),
        ("queries.tsv", "q1\topen a file\nq2 close it\n", r"queries\.tsv:2: expected an id, a tab and a text"),
        ("queries.tsv", "q1\topen a file\nq2\tclose\nq1\tagain\n", r"queries\.tsv: id: 'q1' stands twice"),
        ("corpus.jsonl", '{"_id": "d1"}\n', r"corpus\.jsonl:1: text: missing"),
    ],
)
def test_faults_are_named(files: Path, file: str, text: str, message: str) -> None:
    (files / file).write_text(text)
    with pytest.raises(FormatError, match=message):
        read(files)


def test_a_run_alone_has_no_texts(files: Path) -> None:
    with pytest.raises(InputError, match="corpus, queries: expected the files"):
        read_any(files / "r.run", "trec")
