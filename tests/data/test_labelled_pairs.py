import pytest

from d2llm.data.example import Example
from d2llm.data.importers import read_any, sniff
from d2llm.data.pairs import pairs_to_examples, read_pairs
from d2llm.errors import FormatError, InputError

SICK = (
    "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment\n"
    '1\tA "kid plays\tA boy plays\t4.5\tENTAILMENT\n'
    "2\tA dog runs\tA cat sleeps\t1.2\tNEUTRAL\n"
    "3\tA dog runs\tNo dog runs\t3.6\tCONTRADICTION\n"
)


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_one_table_read_both_ways(tmp_path):
    path = write(tmp_path / "sick.txt", SICK)
    pairs, labels = read_pairs(path, "nli")
    assert pairs[0] == ('A "kid plays', "A boy plays")
    assert labels == [1, 0, 0]
    assert read_pairs(path, "sts").labels == [4.5, 1.2, 3.6]


def test_csv_with_quotes_and_line_ends_within(tmp_path):
    path = write(tmp_path / "qa.csv", 'qtext,label,atext\nWho ?,1,"He ,\nsaid ""it"""\nWho ?,0,nobody\n')
    assert sniff(path) == "nli"
    assert read_any(path, task="asym") == [Example("Who ?", 'He ,\nsaid "it"', ("nobody",), "asym")]


def test_without_header_the_first_three_columns_count(tmp_path):
    assert read_pairs(write(tmp_path / "a.tsv", "one\ttwo\t3.5\nthree\tfour\t1\n"), "sts").labels == [3.5, 1.0]


def test_numeric_labels_and_pairs_without_agreed_label(tmp_path):
    path = write(tmp_path / "a.tsv", "gold_label\tsentence1\tsentence2\n-\ta\tb\n1\tc\td\nnot_entailment\te\tf\n")
    assert read_pairs(path, "nli") == ([("c", "d"), ("e", "f")], [1.0, 0.0])


def test_pairs_as_examples():
    pairs = [("a", "b"), ("a", "c"), ("a", "d"), ("e", "f"), ("a", "b"), ("a", "c")]
    examples = pairs_to_examples(pairs, [1, 0, 1, 0, 1, 1], threshold=0.5)
    assert examples == [Example("a", p, (), "sym") for p in "bdc"]
    assert pairs_to_examples(pairs[:4], [1, 0, 1, 0], 0.5)[0].negatives == ("c",)


def test_similarity_counts_as_positive_from_the_threshold_on(tmp_path):
    path = write(tmp_path / "a.tsv", "sentence1\tsentence2\tscore\na\tb\t4.2\na\tc\t3.1\n")
    assert sniff(path) == "sts"
    assert read_any(path) == [Example("a", "b", ("c",), "sym")]
    assert len(read_any(path, threshold=3.0)) == 2


@pytest.mark.parametrize(
    ("row", "kind", "fault"),
    [
        ("a\tb", "nli", "expected 3 columns, got 2"),
        ("a\t \t1", "nli", "expected two non-empty texts"),
        ("a\tb\t2", "nli", "label: expected entailment"),
        ("a\tb\tperhaps", "nli", "label: expected entailment"),
        ("a\tb\tnan", "sts", "label: expected a number"),
    ],
)
def test_faults_are_reported_as_file_and_line(tmp_path, row, kind, fault):
    path = write(tmp_path / "a.tsv", f"sentence1\tsentence2\tlabel\na\tb\t1\n{row}\n")
    with pytest.raises(FormatError, match=rf"a\.tsv:3: {fault}"):
        read_pairs(path, kind)


def test_broken_csv_and_empty_tables(tmp_path):
    with pytest.raises(FormatError, match=r"a\.csv:2: not valid CSV"):
        read_pairs(write(tmp_path / "a.csv", 'sentence1,sentence2,label\n"a,b,1\n'), "nli")
    (tmp_path / "b.csv").write_bytes(b"sentence1,sentence2,label\n\xff,b,1\n")
    with pytest.raises(FormatError, match=r"b\.csv:\d: expected UTF-8"):
        read_pairs(tmp_path / "b.csv", "nli")
    with pytest.raises(FormatError, match="below the header"):
        read_pairs(write(tmp_path / "c.tsv", "sentence1\tsentence2\tlabel\n"), "nli")


def test_errors_name_the_argument(tmp_path):
    with pytest.raises(InputError, match="^kind: expected"):
        read_pairs(tmp_path / "a.tsv", "qa")
    with pytest.raises(InputError, match="^labels: expected 1"):
        pairs_to_examples([("a", "b")], [], 0.5)
    with pytest.raises(InputError, match="^labels: expected some from 0.5 on, the highest is 0"):
        pairs_to_examples([("a", "b")], [0], 0.5)
