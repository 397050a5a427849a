"""Runs: cut from scores, written and read, measured; what is odd about them is counted."""

import numpy as np
import pytest

from d2llm.errors import FormatError, InputError
from d2llm.evaluation import Run, per_query, read_qrels, read_run, write_qrels, write_run
from d2llm.evaluation.measure import measure
from d2llm.evaluation.run import NOTHING, best
from d2llm.evaluation.scorers import Found

QRELS = {"a": {"x": 2, "y": 1}, "b": {"z": 1}, "c": {"x": 0}}


def test_a_cut_keeps_the_best_and_of_equals_the_first():
    rows = np.array([[1.0, 3.0, 2.0, 3.0], [0.0, 0.0, 5.0, 0.0]])
    assert best(rows, 2)[0].tolist() == [[1, 3], [2, 0]]
    indices, scores = best(rows, 9, above=0.0)
    assert indices.tolist() == [[1, 3, 2, 0], [2, NOTHING, NOTHING, NOTHING]]
    assert scores[1].tolist() == [5.0, -np.inf, -np.inf, -np.inf]


def test_a_deep_enough_cut_changes_no_metric():
    draw = np.random.default_rng(0)
    rows = draw.normal(size=(20, 300))
    qrels = {str(q): {str(p): 1 for p in draw.choice(300, 3)} for q in range(20)}
    names = [str(number) for number in range(300)]
    whole, cut = (Run(names[:20], names, *best(rows, depth)) for depth in (300, 10))
    metrics = ["ndcg@10", "mrr@10", "recall@10", "p@10"]
    for name, values in per_query(whole, qrels, metrics).items():
        np.testing.assert_array_equal(values, per_query(cut, qrels, metrics)[name])


def test_files_give_back_what_was_written(tmp_path):
    draw = np.random.default_rng(0)
    rows = draw.normal(size=(3, 6)).astype(np.float32)
    run = Run(list("abc"), list("uvwxyz"), *best(rows, 4, above=-0.5))
    write_run(tmp_path / "run.trec", run, "student IEM")
    write_qrels(tmp_path / "qrels.trec", QRELS)
    assert read_qrels(tmp_path / "qrels.trec") == QRELS
    read = read_run(tmp_path / "run.trec")
    for name, values in per_query(run, QRELS, ["ndcg", "map"]).items():
        np.testing.assert_array_equal(per_query(read, QRELS, ["ndcg", "map"])[name], values)
    assert read.found().tolist() == run.found().tolist()
    first = (tmp_path / "run.trec").read_text().splitlines()[0].split()
    assert first[1::2] == ["Q0", "1", "student-IEM"] and np.float32(first[4]) == rows[0].max()
    assert read_run(tmp_path / "run.trec", depth=1).found().tolist() == [1, 1, 1]


def test_ranks_in_a_file_do_not_count(tmp_path):
    (tmp_path / "r").write_text("a Q0 x 1 0.5 n\n\na Q0 y 2 2.5 n\n")
    run = read_run(tmp_path / "r")
    assert [run.passages[index] for index in run.indices[0]] == ["y", "x"]


@pytest.mark.parametrize(
    "read, text, message",
    [
        (read_run, "a Q0 x 1 0.5 n\na Q0 x 2 0.4 n\n", "r:2: passage: 'x' stands twice for query 'a'"),
        (read_run, "a Q0 x 1 nan n\n", "r:1: score: expected a finite number, got 'nan'"),
        (read_run, "a x 1\n", "r:1: expected query, Q0, passage"),
        (read_run, "\n", "expected rows, the file has none"),
        (read_qrels, "a 0 x 1\nb 0 x 1\na 0 x 1\n", "r:3: passage: 'x' is judged twice for query 'a'"),
        (read_qrels, "a 0 x good\n", "r:1: grade: expected an integer, got 'good'"),
        (read_qrels, "a\tx\t1\n", "r:1: expected query, 0, passage and grade, got 3 columns"),
    ],
)
def test_faulty_files_are_named_by_line(tmp_path, read, text, message):
    (tmp_path / "r").write_text(text)
    with pytest.raises(FormatError, match=message):
        read(tmp_path / "r")


def test_ids_with_white_space_are_not_written(tmp_path):
    with pytest.raises(InputError, match="passage ids: expected no white space, .* got 1 with it, such as 'a b'"):
        write_qrels(tmp_path / "q", {"q": {"a b": 1}})
    assert not (tmp_path / "q").exists()


def test_what_is_odd_is_counted():
    run = Run.of_mapping({"a": {"x": 1.0, "nowhere": 2.0}, "stranger": {"x": 1.0}})
    measured = measure({"it": Found((run,))}, {**QRELS, "a": {"x": 1, "gone": 1}}, list("xyz"), ["mrr"], samples=100)
    assert measured.queries == ["a", "b"]
    assert measured.table.rows[0].metrics == {"mrr": 0.25, "queries": 2.0}
    assert [note.split(",")[0] for note in measured.table.notes] == [
        "qrels: 1 of 3 queries have no relevant passage and are left out",
        "qrels: 1 judged passages are not in the corpus",
        "it: 1 queries of its run are not judged and left out",
        "it: 1 judged queries are not in its run and count 0",
        "it: fewer than 3 passages for 1 of 2 queries",
        "it: 1 passages of its run are not in the corpus",
    ]


def test_differences_are_taken_from_every_baseline_once():
    run = Run.of_mapping({"a": {"x": 1.0}})
    found = {name: Found((run,)) for name in ("one", "two", "three")}
    measured = measure(found, QRELS, "xyz", ["mrr"], baselines=("two", "one"), samples=100)
    contrasts = [(each.system, each.baseline) for each in measured.table.contrasts]
    assert contrasts == [("one", "two"), ("three", "two"), ("three", "one")]


def test_seeds_share_a_row_and_are_compared_by_their_mean():
    seeds = [Run.of_mapping({"a": {"x": x, "y": 1.0}, "b": {"z": 1.0}}) for x in (2.0, 0.0)]
    other = Run.of_mapping({"a": {"y": 1.0}})
    measured = measure(
        {"one": Found((other,)), "two": Found(tuple(seeds))}, {"a": {"x": 1}, "b": {"z": 1}}, "xyz", ["mrr"]
    )
    row, contrast = measured.table.rows[1], measured.table.contrasts[0]
    assert row.metrics["mrr"] == pytest.approx((1 + 0.75) / 2) and row.spread["mrr"] == pytest.approx(0.25 / 2**0.5)
    assert contrast.found.value == pytest.approx(0.875)
    np.testing.assert_array_equal(measured.per_query["two"]["mrr"], [0.75, 1.0])
