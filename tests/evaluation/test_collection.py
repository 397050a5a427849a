"""What is searched and what is relevant, from every source."""

from pathlib import Path

import pytest

from d2llm.data.cosqa import read_cosqa
from d2llm.data.example import Example, text_id
from d2llm.data.jsonl import write_examples
from d2llm.errors import FormatError, MissingError
from d2llm.evaluation.collection import read_collection


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "examples.jsonl"
    write_examples(path, [Example("q", "right", ("wrong",)), Example("q", "right too"), Example("r", "wrong")])
    return path


def test_a_corpus_is_searched_beside_the_passages_of_the_data_and_keeps_its_ids(data: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"id": "1", "text": "right"}\n{"id": "2", "text": "else"}\n{"id": "3", "text": "right"}\n')
    found, task = read_collection(data, corpus)
    assert task == "asym"
    assert found.corpus == {
        "1": "right", "2": "else", "3": "right", text_id("wrong"): "wrong", text_id("right too"): "right too"
    }  # fmt: skip
    assert found.queries == {text_id("q"): "q", text_id("r"): "r"}
    # A text under two ids is right under both.
    assert found.qrels == {text_id("q"): {"1": 1, "3": 1, text_id("right too"): 1}, text_id("r"): {text_id("wrong"): 1}}


def test_judgements_may_come_from_a_file_and_must_be_of_the_data(data: Path, tmp_path: Path) -> None:
    qrels = tmp_path / "qrels.trec"
    qrels.write_text(f"{text_id('r')} 0 {text_id('right')} 2\n")
    assert read_collection(data, qrels=qrels)[0].qrels == {text_id("r"): {text_id("right"): 2}}
    qrels.write_text(f"{text_id('r')} 0 nowhere 2\n")
    with pytest.raises(FormatError, match="judgements of passages of the data, got 1 that it lacks, such as 'nowhere'"):
        read_collection(data, qrels=qrels)


def test_a_corpus_beside_a_folder_brings_other_ids(tmp_path: Path) -> None:
    (tmp_path / "codes.json").write_text('{"code": 1}')
    (tmp_path / "dev.json").write_text('[{"query": "q", "code": 1}]')
    corpus = tmp_path / "more.txt"
    corpus.write_text("\nmore\n")
    assert read_collection(tmp_path, corpus)[0].corpus == {"1": "code", "2": "more"}
    corpus.write_text("more\n")
    with pytest.raises(FormatError, match="--corpus: expected other ids than those of the data, got 1 again"):
        read_collection(tmp_path, corpus)


def test_the_library_is_searched_as_a_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pairs = [Example(f"query {number}", f"passage {number}") for number in range(600)]
    monkeypatch.setattr("d2llm.evaluation.collection.standard_library_pairs", lambda: pairs)
    monkeypatch.chdir(tmp_path)
    found, _ = read_collection(Path("library"))
    assert len(found.corpus) == 600 and len(found.queries) == len(found.qrels) == 500


@pytest.mark.parametrize(
    "text, message",
    [
        ('[{"query": "q", "code": 5}]', "1 codes are not in codes.json, such as 5"),
        ('[{"query": "q"}]', "expected objects with query and code"),
        ("{", "not valid JSON"),
    ],
)
def test_a_faulty_cosqa_folder_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "codes.json").write_text('{"code": 1}')
    (tmp_path / "dev.json").write_text(text)
    with pytest.raises(FormatError, match=message):
        read_cosqa(tmp_path)
    with pytest.raises(MissingError, match=r"splits there: \['dev'\]"):
        read_cosqa(tmp_path, "test")
