"""d2llm eval: every kind of system on one table, files in and out, bad input named."""

import json
from pathlib import Path

import pytest

from d2llm.evaluation import read_qrels, read_run
from tests.cli.conftest import Run


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "more.jsonl"
    texts = {"d1": "open the file of x", "d2": "close the socket of nobody", "d3": "read z"}
    path.write_text("".join(json.dumps({"id": name, "text": text}) + "\n" for name, text in texts.items()))
    return path


def test_students_seeds_models_of_others_and_runs_in_one_table(
    run: Run, student_folder: Path, base_model: str, examples_file: Path, corpus: Path, tmp_path: Path
) -> None:
    out, results, picture = tmp_path / "out", tmp_path / "r.json", tmp_path / "costs.png"
    data = (examples_file, "--corpus", corpus)
    students = (f"two={student_folder}", f"two={student_folder}", f"other={student_folder}")
    systems = ("--systems", f"bm25,iem,hybrid,plain=mean:{base_model}", "--metrics", "mrr,p@2,judged@2")
    small = ("--samples", 200, "--depth", 3, "--baseline", "plain")
    first = run("eval", *students, *data, *systems, *small, "--out", out, "--json", results, "--plot", picture)
    assert first.exit_code == 0, first.output
    table = json.loads(results.read_text())
    names = ["BM25", "two IEM", "other IEM", "two IEM + 0.2 BM25", "other IEM + 0.2 BM25", "plain"]
    assert list(table["systems"]) == names and picture.stat().st_size > 1000
    assert set(table["systems"]["two IEM"]) == {
        "mrr", "p@2", "judged@2", "queries", "encode_ms", "search_ms", "bytes"
    }  # fmt: skip
    # The same weights twice: a spread of nothing, and no difference to a student of another name.
    assert (
        table["spread"]["two IEM"] == {"mrr": 0.0, "p@2": 0.0, "judged@2": 0.0} and "other IEM" not in table["spread"]
    )
    assert table["systems"]["two IEM"]["mrr"] == table["systems"]["other IEM"]["mrr"]
    assert [each["system"] for each in table["differences"]] == names[:-1]
    assert all(each["low"] <= each["value"] <= each["high"] for each in table["differences"])
    # Ten passages of the data, which has one of the corpus too, and what else the corpus has.
    assert len(read_run(out / "runs" / "two-IEM-2.trec").queries) == len(read_qrels(out / "qrels.trec")) == 8
    assert len((out / "per-query.tsv").read_text().splitlines()) == 1 + 8 * len(names) * 3
    again = run(
        "eval", *data, "--systems", "bm25", "--run", f"kept={out / 'runs' / 'two-IEM.trec'}", "--qrels",
        out / "qrels.trec", "--metrics", "mrr,p@2,judged@2", "--json", results, "--samples", 200,
    )  # fmt: skip
    assert again.exit_code == 0, again.output
    assert json.loads(results.read_text())["systems"]["kept"]["mrr"] == table["systems"]["two IEM"]["mrr"]
    taken = run("eval", *data, "--systems", "bm25", "--run", f"BM25={out / 'runs' / 'BM25.trec'}")
    assert taken.exit_code == 2 and "rows of distinct names, got 'BM25' again" in taken.stderr


def test_cosqa(run: Run, tmp_path: Path) -> None:
    (tmp_path / "codes.json").write_text(json.dumps({"def read(x): ...": 7, "def write(x): ...": 2}))
    (tmp_path / "dev.json").write_text(json.dumps([{"query": "write it", "code": 2}, {"query": "how to", "code": 7}]))
    result = run("eval", tmp_path, "--json", tmp_path / "r" / "r.json")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "r" / "r.json").read_text())["systems"]["BM25"]["mrr"] == 0.5
    assert "BM25: fewer than 2 passages for 2 of 2 queries, 0 at the least" in result.stdout
    assert "splits there: ['dev']" in run("eval", tmp_path, "--split", "train").stderr


def test_thresholds_come_from_other_pairs(run: Run, tmp_path: Path) -> None:
    def table(name: str, *rows: str) -> Path:
        (tmp_path / name).write_text("sentence1\tsentence2\tlabel\n" + "\n".join(rows) + "\n")
        return tmp_path / name

    test = table("test.tsv", "open x\topen x\t1", "read y\tread y\t1", "open x\tread y\t0")
    validation = table("validation.tsv", "go on\tgo on\t1", "go on\tstop it\t0")
    without = run("eval", test, "--kind", "nli", "--samples", 100)
    assert without.exit_code == 0 and "accuracy" not in without.stdout and "roc_auc" in without.stdout, without.output
    fitted = run("eval", test, "--kind", "nli", "--threshold-from", validation, "--json", tmp_path / "r.json")
    assert fitted.exit_code == 0, fitted.output
    assert json.loads((tmp_path / "r.json").read_text())["systems"]["BM25"]["accuracy"] == 1.0


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--systems", "bm25,magic"), "--systems: expected some of bm25, untrained"),
        (("--systems", "mean:"), "--systems: expected some of bm25, untrained"),
        (("--systems", "iem"), "--systems: iem needs a student"),
        (("--systems", "bm25,teacher"), "--systems: teacher needs --adapter"),
        (("--systems", "cosine", "--kind", "nli"), "--systems: cosine needs a student"),
        (("--systems", "bm25,cross:x", "--first-stage", "iem"), "--first-stage: expected one of bm25, which are among"),
        (("--metrics", "ndcg@10,recall"), "metrics: expected ndcg, mrr or map"),
        (("--contrast", "p@3"), "--contrast: expected one of ndcg@10, mrr"),
        (("--baseline", "nobody"), "--baseline: expected one of BM25, got 'nobody'"),
        (("--samples", "7"), "samples: expected at least 100, got 7"),
        (("--depth", "0"), "--depth: expected at least 1, got 0"),
        (
            ("--candidates", "2000", "--systems", "bm25,cross:x", "--first-stage", "bm25"),
            "candidates: expected 1 to the depth (1000), got 2000",
        ),
        (("--run", "file.trec"), "--run: expected NAME=FILE, got 'file.trec'"),
        (("--qrels", "{strange}"), "expected judgements of queries of the data, got 1 that it lacks, such as 'nobody'"),
        (("--threshold-from", "{strange}", "--kind", "sts"), "--threshold-from: expected with --kind nli"),
        (("--corpus", "{strange}", "--kind", "sts"), "--corpus: expected with --kind ir, got it with --kind sts"),
    ],
)
def test_bad_input_is_named(
    run: Run, examples_file: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    strange = tmp_path / "strange.trec"
    strange.write_text("nobody 0 nothing 1\n")
    extra = () if "--samples" not in arguments else ("--run", f"x={_run(tmp_path)}")
    result = run("eval", examples_file, *(each.format(strange=strange) for each in arguments), *extra)
    assert result.exit_code == 2 and message in result.stderr, result.output


def _run(folder: Path) -> Path:
    (folder / "x.trec").write_text("q Q0 p 1 1.0 x\n")
    return folder / "x.trec"
