import json
import math

import pytest

from d2llm.data.example import Example
from d2llm.data.importers import read_any, sniff
from d2llm.data.jsonl import read_corpus, read_examples, write_examples
from d2llm.errors import FormatError, InputError, MissingError


def jsonl(path, *rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def probability(pair: tuple[float, float]) -> float:
    return 1 / (1 + math.exp(pair[1] - pair[0]))


def test_sentence_transformers_objects_count_by_order(tmp_path):
    path = jsonl(
        tmp_path / "st.jsonl",
        {"anchor": "q", "good": "p", "bad_1": "n1", "bad_2": "n2"},
        {"anchor": "r", "good": "p", "bad_1": ["n3", "n4"], "bad_2": None},
    )
    assert sniff(path) == "sentence-transformers"
    assert read_any(path) == [Example("q", "p", ("n1", "n2")), Example("r", "p", ("n3", "n4"))]


def test_query_and_positive_with_numbered_negatives_are_sentence_transformers_rows(tmp_path):
    path = jsonl(tmp_path / "st.jsonl", {"query": "q", "positive": "p", "negative_1": "n"})
    assert read_any(path, task="sym") == [Example("q", "p", ("n",), "sym")]
    path = jsonl(tmp_path / "own.jsonl", {"query": "q", "positive": "p", "source": "a book"})
    assert read_any(path) == [Example("q", "p")]


@pytest.mark.parametrize(("suffix", "separator"), [("csv", ","), ("tsv", "\t")])
def test_sentence_transformers_tables(tmp_path, suffix, separator):
    path = tmp_path / f"st.{suffix}"
    rows = [["query", "positive", "negative_1", "negative_2"], ["q", "p", "n", ""], ["r", "s", "n", "m"]]
    path.write_text("\n".join(separator.join(row) for row in rows))
    assert read_any(path) == [Example("q", "p", ("n",)), Example("r", "s", ("n", "m"))]


def test_single_number_scores_become_logits(tmp_path):
    rows = [{"query": "q", "positive": "p", "n": "n", "scores": scores} for scores in ([0.9, 0.25], [1.0, 0.0])]
    as_probabilities = read_any(jsonl(tmp_path / "p.jsonl", *rows))
    assert [probability(pair) for pair in as_probabilities[0].scores] == pytest.approx([0.9, 0.25])
    assert all(math.isfinite(value) for pair in as_probabilities[1].scores for value in pair)
    rows[0]["scores"] = [4.5, -2.0]
    path = jsonl(tmp_path / "l.jsonl", *rows)
    assert read_any(path)[0].scores == ((4.5, 0.0), (-2.0, 0.0))
    assert read_any(path, scores="drop")[0].scores is None
    with pytest.raises(InputError, match="scores: expected probabilities"):
        read_any(path, scores="probability")


def test_flagembedding_gives_one_example_a_positive(tmp_path):
    row = {
        "query": "q",
        "pos": ["p1", "p2"],
        "neg": ["n"],
        "pos_scores": [3.0, 2.0],
        "neg_scores": [-1.0],
        "prompt": "",
    }
    path = jsonl(tmp_path / "fe.jsonl", row, {"query": "r", "pos": ["p"], "neg": []})
    assert sniff(path) == "flagembedding"
    assert read_any(path) == [
        Example("q", "p1", ("n",), scores=((3.0, 0.0), (-1.0, 0.0))),
        Example("q", "p2", ("n",), scores=((2.0, 0.0), (-1.0, 0.0))),
        Example("r", "p"),
    ]


def test_tevatron_with_a_corpus(tmp_path):
    jsonl(tmp_path / "corpus.jsonl", {"docid": "1", "text": "one"}, {"docid": "2", "title": "Two", "text": "two"})
    row = {"query_id": "7", "query_text": "q", "positive_document_ids": ["2"], "negative_document_ids": ["1"]}
    path = jsonl(tmp_path / "train.jsonl", row)
    assert sniff(path) == "tevatron"
    assert read_any(path) == [Example("q", "Two two", ("one",))]
    elsewhere = jsonl(tmp_path / "other.jsonl", {"docid": "1", "text": "uno"}, {"docid": "2", "text": "dos"})
    assert read_any(path, corpus=elsewhere) == [Example("q", "dos", ("uno",))]
    row["negative_document_ids"] = ["9"]
    with pytest.raises(FormatError, match=r"train\.jsonl:1: negative_document_ids: '9' is not in"):
        read_any(jsonl(path, row))


def test_tevatron_with_passages_in_place(tmp_path):
    row = {
        "query_id": "7",
        "query": "q",
        "positive_passages": [{"docid": "1", "title": "", "text": "p"}],
        "negative_passages": [{"docid": "2", "title": "T", "text": "n"}],
    }
    assert read_any(jsonl(tmp_path / "train.jsonl", row)) == [Example("q", "p", ("T n",))]


def beir(folder, qrels: str):
    (folder / "qrels").mkdir(parents=True)
    jsonl(
        folder / "corpus.jsonl", {"_id": "d1", "title": "T", "text": "one"}, {"_id": "d2", "title": "", "text": "two"}
    )
    jsonl(folder / "queries.jsonl", {"_id": "q1", "text": "q"}, {"_id": "q2", "text": "unjudged"})
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n" + qrels)
    return folder


def test_beir_folder(tmp_path):
    folder = beir(tmp_path / "set", "q1\td1\t1\nq1\td2\t0\n")
    assert sniff(folder) == "beir"
    assert read_any(folder) == [Example("q", "T one", ("two",))]
    with pytest.raises(MissingError, match=r"test\.tsv: file not found; splits there: \['train'\]"):
        read_any(folder, split="test")


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ("q9\td1\t1", "query-id: 'q9' is not in the collection"),
        ("q1\td9\t1", "corpus-id: 'd9' is not in the collection"),
        ("q1\td1\tyes", "score: expected an integer"),
        ("q1\td1", "expected query-id, corpus-id and score, got 2 columns"),
    ],
)
def test_beir_faults(tmp_path, row, fault):
    with pytest.raises(FormatError, match=rf"train\.tsv:2: {fault}"):
        read_any(beir(tmp_path / "set", row))


def test_import_writes_the_projects_own_format(tmp_path):
    source = jsonl(tmp_path / "fe.jsonl", {"query": "q", "pos": ["p"], "neg": ["n"]})
    target = tmp_path / "data.jsonl"
    assert write_examples(target, read_any(source, task="sym")) == 1
    assert sniff(target) == "d2llm"
    assert read_any(target) == read_examples(target) == [Example("q", "p", ("n",), "sym")]
    with pytest.raises(FormatError, match=r"fe\.jsonl:1: pos: expected"):
        write_examples(target, read_any(jsonl(source, {"query": "q", "pos": [], "neg": ["n"]})))
    assert len(read_examples(target)) == 1


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"a": "q", "b": "p", "scores": [1.0, 2.0]}, "scores: expected a list of 1 numbers"),
        ({"a": "q", "b": "p", "scores": ["x"]}, "scores: expected finite numbers"),
        ({"a": "q", "b": ""}, "b: expected a non-empty text"),
        ({"a": "q", "b": "p", "c": 3}, "c: expected a list of non-empty texts"),
        ({"query": "q", "pos": "p", "neg": []}, "pos: expected a list"),
        ({"query": "q", "pos": ["p"], "neg": ["n"], "pos_scores": [1], "neg_scores": []}, "neg_scores: expected"),
    ],
)
def test_row_faults(tmp_path, row, fault):
    with pytest.raises(FormatError, match=rf"rows\.jsonl:1: {fault}"):
        read_any(jsonl(tmp_path / "rows.jsonl", row))


def test_formats_that_cannot_be_told(tmp_path):
    with pytest.raises(InputError, match="^format: expected one of"):
        read_any(tmp_path, "parquet")
    with pytest.raises(InputError, match="^format: cannot be told"):
        read_any(jsonl(tmp_path / "a.jsonl", {"text": "x"}))
    (tmp_path / "b.tsv").write_text("sentence_A\tsentence_B\trelatedness_score\tentailment_judgment\n")
    with pytest.raises(InputError, match="^format: .* both a label and a score"):
        read_any(tmp_path / "b.tsv")
    (tmp_path / "c.jsonl").write_text("")
    with pytest.raises(FormatError, match="the file is empty"):
        read_any(tmp_path / "c.jsonl")
    with pytest.raises(MissingError):
        read_any(tmp_path / "absent.jsonl")
    with pytest.raises(InputError, match="^scores: expected one of"):
        read_any(jsonl(tmp_path / "d.jsonl", {"a": "q", "b": "p"}), scores="margin")


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        (
            "st.csv",
            "query,positive,negative,negative\nq,p,n,m\n",
            "1: columns: expected distinct names, got 'negative'",
        ),
        ("st.csv", f"query,positive,scores\nq,p,{'[' * 5000}\n", "2: scores: expected a list of numbers"),
        ("st.csv", f"query,positive,scores\nq,p,[{'9' * 400}]\n", "2: scores: expected finite numbers"),
        ("nli.tsv", "premise\thypothesis\tlabel\tPremise\na\tb\t1\tc\n", "1: columns: expected distinct names"),
        ("sts.tsv", "sentence1\tsentence2\tscore\na\tb\t1_0\n", "2: label: expected a number, got '1_0'"),
        ("fe.jsonl", '{"query": "q", "pos": ["p"], "neg": 0}', "1: neg: expected a list, got 0"),
        (
            "fe.jsonl",
            '{"query": "q", "pos": ["p"], "pos_scores": [1], "neg_scores": {}}',
            "1: neg_scores: expected a list",
        ),
        ("t.jsonl", '{"query": "q", "positive_passages": [{"title": 3, "text": "t"}]}', "1: title: expected a text"),
        ("t.jsonl", '{"query": "q", "positive_passages": 0}', "1: positive_passages: expected a list"),
        ("t.jsonl", '{"query": "q", "positive_document_ids": [null]}', "1: id: expected a text or an integer"),
    ],
)
def test_what_python_would_take_for_something_else_is_a_fault(tmp_path, name, content, fault):
    path = tmp_path / name
    path.write_text(content)
    jsonl(tmp_path / "corpus.jsonl", {"docid": "None", "text": "t"})
    with pytest.raises(FormatError, match=f"{name}:{fault}"):
        read_any(path)


def test_a_faulty_corpus_is_read_once(tmp_path, monkeypatch):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("{\n")
    path = jsonl(tmp_path / "t.jsonl", *[{"query": f"q{i}", "positive_document_ids": ["1"]} for i in range(50)])
    calls = []
    monkeypatch.setattr("d2llm.data.beir.read_corpus", lambda path: calls.append(path) or read_corpus(path))
    with pytest.raises(FormatError) as caught:
        read_any(path)
    assert str(caught.value).startswith(f"{corpus}:1: ") and calls == [corpus]


@pytest.mark.parametrize(
    ("qrels", "fault"),
    [
        ("q1\td1\t1_0\n", "2: score: expected an integer, got '1_0'"),
        ("q1\td1\t1\nq1\td1\t0\n", "3: score: .* judged 1"),
    ],
)
def test_judgements_are_whole_numbers_and_agree(tmp_path, qrels, fault):
    with pytest.raises(FormatError, match=rf"train\.tsv:{fault}"):
        read_any(beir(tmp_path / "set", qrels))
    assert len(read_any(beir(tmp_path / "fine", "q1\td1\t1\nq1\td1\t+1\n"))) == 1
