import io
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from d2llm.data.example import Example
from d2llm.data.jsonl import read_corpus, read_documents, read_examples, write_examples
from d2llm.errors import FormatError, InputError, MissingError

texts = st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip)
logits = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def any_example(draw) -> Example:
    negatives = tuple(draw(st.lists(texts, max_size=3)))
    group = st.tuples(*[st.tuples(logits, logits)] * (1 + len(negatives)))
    scores = draw(st.none() | group)
    positive = draw(texts.filter(lambda text: text not in negatives))
    return Example(draw(texts), positive, negatives, draw(st.sampled_from(["sym", "asym"])), scores)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(any_example(), min_size=1, max_size=4))
def test_what_is_written_is_read(tmp_path, examples):
    path = tmp_path / "data.jsonl"
    assert write_examples(path, examples) == len(examples)
    assert read_examples(path) == examples


def test_defaults_blank_lines_byte_order_mark_and_other_keys(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"query": "q", "positive": "p", "source": 3}\r\n\r\n{"query": "r", "positive": "p"}')
    assert read_examples(path) == [Example("q", "p"), Example("r", "p")]


#: What Python takes for nothing, and JSON does not.
EMPTY = ("0", "false", '""', "{}")


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{", "not valid JSON"),
        ("[1]", "expected a JSON object, got list"),
        ('{"positive": "p"}', "query: missing"),
        ('{"query": " ", "positive": "p"}', "query: expected a non-empty text"),
        ('{"query": "q", "positive": 3}', "positive: expected a non-empty text, got 3"),
        ('{"query": "q", "positive": "p", "negatives": "n"}', "negatives: expected a list"),
        ('{"query": "q", "positive": "p", "negatives": ["n", ""]}', r"negatives\[1\]: expected a non-empty text"),
        (
            '{"query": "q", "positive": "p", "negatives": ["n", "p"]}',
            r"negatives\[1\]: expected other passages than the",
        ),
        ('{"query": "q", "positive": "p", "negative": ["n"]}', "negative: unknown key, 'negatives' perhaps"),
        ('{"query": "q", "positive": "p", "task": "both"}', "task: expected one of"),
        ('{"query": "q", "positive": "p", "task": ["sym"]}', "task: expected one of"),
        ('{"query": "q", "positive": "p", "scores": [1.0]}', r"scores: expected a list of \[yes, no\]"),
        ('{"query": "q", "positive": "p", "scores": [[1, NaN]]}', "scores: expected finite"),
        ('{"query": "q", "positive": "p", "scores": [[1, 2], [3, 4]]}', "scores: expected 1 rows"),
        ('{"query": "\\ud800", "positive": "p"}', "expected text, got half of a surrogate"),
        *[(f'{{"query": "q", "positive": "p", "negatives": {n}}}', "negatives: expected a list") for n in EMPTY],
        ('{"query": "q", "positive": "p", "query": "r"}', "not valid JSON .'query' stands twice"),
        ('{"query": "q", "positive": "p", "more": [{"a": 1, "a": 2}]}', "not valid JSON .'a' stands twice"),
        (f'{{"query": "q", "positive": "p", "scores": [[1, {"9" * 400}]]}}', "scores: expected finite numbers"),
        (f'{{"query": "q", "positive": "p", "scores": [[1, {"9" * 5000}]]}}', "not valid JSON"),
        (f'{{"query": "q", "positive": {[1] * 1000}}}', r"positive: expected a non-empty text, got \[1, .{196}\.\.\.$"),
        (b'{"query": "\xff", "positive": "p"}', "expected UTF-8"),
    ],
)
def test_faults_are_reported_as_file_and_line(tmp_path, line, fault):
    path = tmp_path / "data.jsonl"
    content = line if isinstance(line, bytes) else line.encode()
    path.write_bytes(b'{"query": "q", "positive": "p"}\n\n' + content + b"\n")
    with pytest.raises(FormatError, match=rf"data\.jsonl:3: {fault}"):
        read_examples(path)


def test_examples_know_their_line(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"query": "q", "positive": "p"}\n\n{"query": "r", "positive": "s"}\n')
    assert [example.line for example in read_examples(path)] == [1, 3]


def test_many_faults_are_reported_together(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("{\n" * 30)
    with pytest.raises(FormatError) as caught:
        read_examples(path)
    lines = str(caught.value).splitlines()
    assert [line.split(": ")[0] for line in lines[:20]] == [f"{path}:{number}" for number in range(1, 21)]
    assert lines[20:] == ["... and 10 more"]


def test_empty_and_missing_files(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(FormatError, match="empty.jsonl: expected rows"):
        read_examples(tmp_path / "empty.jsonl")
    with pytest.raises(MissingError, match="absent.jsonl: file not found"):
        read_examples(tmp_path / "absent.jsonl")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "data.jsonl"
    write_examples(path, [Example("old", "p")])

    def stops():
        yield Example("new", "p")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_examples(path, stops())
    with pytest.raises(InputError, match="scores: expected finite"):
        write_examples(path, [Example("q", "p", scores=((float("nan"), 0.0),))])
    with pytest.raises(InputError, match="examples: expected at least one"):
        write_examples(path, [])
    assert read_examples(path) == [Example("old", "p")]
    assert [file.name for file in tmp_path.iterdir()] == ["data.jsonl"]


def test_corpus_of_text_lines(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("first\n\n  second \n", encoding="utf-8")
    assert read_corpus(path) == [("1", "first"), ("3", "second")]


def test_corpus_of_json_lines(tmp_path):
    path = tmp_path / "corpus.jsonl"
    rows = [
        {"id": "a", "text": "one"},
        {"_id": "b", "title": "Two", "text": "two"},
        {"docid": 7, "text": "three", "title": ""},
        {"text": "four"},
        {"id": "t", "title": "all title", "text": ""},
        {"id": "n", "title": None, "text": "none"},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    expected = [("a", "one"), ("b", "Two two"), ("7", "three"), ("4", "four"), ("t", "all title"), ("n", "none")]
    assert read_corpus(path) == expected


def test_documents_come_one_by_one_with_their_metadata(tmp_path, monkeypatch):
    path = tmp_path / "corpus.jsonl"
    rows = [
        {"id": "a", "text": "one", "year": 2020, "metadata": {"lang": "en", "year": 1}},
        {"text": "two", "metadata": None},
        {"id": "a", "text": "again"},
        {"text": "x", "metadata": {"lang": {}}},
        {"text": "not shown"},
        {"text": ""},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(path.read_bytes())))
    for source in (path, "-"):
        documents = read_documents(source, "f:")
        expected = [("a", "one", {"lang": "en", "year": 1}), ("f:2", "two", {}), ("a", "again", {})]
        assert [next(documents) for _ in expected] == expected
        with pytest.raises(FormatError, match=":4: metadata.lang: expected a text(.|\n)*:6: text: expected"):
            next(documents)
    picked = read_documents(path, fields=["year", "lang"])
    assert next(picked)[2] == {"year": 2020, "lang": "en"} and next(picked)[2] == {}


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"id": "a", "text": "again"}', "id: 'a' stands on line 1 already"),
        ('{"id": null, "text": "x"}', "id: expected a text or an integer"),
        ('{"id": "b"}', "text: missing"),
        ('{"id": "b", "text": "\\t"}', "text: expected a non-empty text"),
        ('{"id": "b", "title": 3, "text": "x"}', "title: expected a text"),
        ('{"id": "b", "title": false, "text": "x"}', "title: expected a text, got False"),
        ('{"id": "b", "title": "T", "text": ["x"]}', r"text: expected a text, got \['x'\]"),
        ('{"id": "b", "title": "T", "text": 0}', "text: expected a text, got 0"),
        ('{"id": "b", "text": "x", "id": "c"}', "not valid JSON .'id' stands twice"),
        ("nonsense", "not valid JSON"),
    ],
)
def test_corpus_faults(tmp_path, line, fault):
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"id": "a", "text": "one"}\n' + line + "\n")
    with pytest.raises(FormatError, match=rf"corpus\.jsonl:2: {fault}"):
        read_corpus(path)
