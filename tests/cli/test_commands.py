"""The commands do what they say, from raw pairs to a search; bad input gives exit code 2 and names what is wrong."""

import json
import shlex
import shutil
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file
from typer.testing import CliRunner

from d2llm.cli import app
from d2llm.cli.batches import in_batch_work, run_of
from d2llm.data.example import Example
from d2llm.data.jsonl import read_examples, write_examples
from d2llm.files import read_json
from d2llm.index import Index
from d2llm.student import D2LLM
from d2llm.teacher.scores import ScoreTable
from tests.cli.conftest import Run

TEMPLATE = 'name: own\ntask: asym\ntext: "{query} ? {passage} right ?"\nyes: a\nno: b\n'


@pytest.fixture
def template(tmp_path: Path) -> Path:
    """A prompt whose answers are one token each for the tiny tokenizer."""
    path = tmp_path / "own.yaml"
    path.write_text(TEMPLATE)
    return path


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    rows = [("d1", "open the file\n\nof x\nline three\nline four"), ("d2", "close the socket"), ("d3", "read z")]
    path.write_text("".join(json.dumps({"id": name, "text": text}) + "\n" for name, text in rows))
    return path


def test_mine_draws_from_the_corpus_and_repeats_itself(run: Run, examples_file: Path, tmp_path: Path) -> None:
    for name in ("one.jsonl", "two.jsonl"):
        result = run("mine", examples_file, tmp_path / name, "--k", 3, "--seed", 7)
        assert result.exit_code == 0, result.output
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()
    for example in read_examples(tmp_path / "one.jsonl"):
        assert len(set(example.negatives)) == 3 and example.positive not in example.negatives


def test_mine_by_a_student(run: Run, examples_file: Path, student_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "mined.jsonl"
    result = run("mine", examples_file, out, "--k", 2, "--method", "vectors", "--model", student_folder)
    assert result.exit_code == 0, result.output
    assert {len(example.negatives) for example in read_examples(out)} == {2}


def test_teach_tunes_scores_in_parts_and_collects(
    run: Run, base_model: str, examples_file: Path, template: Path, tmp_path: Path
) -> None:
    model = ("--model", base_model, "--template", template)
    out = tmp_path / "teacher"
    tuned = run("teach", "tune", examples_file, "--out", out, *model, "--steps", 2, "--hard", 1, "--no-bf16")
    assert tuned.exit_code == 0, tuned.output
    more = run("teach", "tune", examples_file, "--out", tmp_path / "more", "--adapter", out, "--steps", 1, "--no-bf16")
    assert more.exit_code == 0 and read_json(tmp_path / "more" / "tuning.json")["model"] == base_model, more.output
    table, adapter = tmp_path / "scores.safetensors", ("--adapter", out / "adapter")
    in_batch = ("--in-batch", "--batch-size", 4, "--epochs", 1)
    first = run("teach", "score", examples_file, "--out", table, *model, *adapter, *in_batch, "--num-shards", 2)
    assert first.exit_code == 0 and "1 of 2 parts are left" in first.output and not table.exists(), first.output
    early = run("teach", "collect", f"{table}.shards", "--out", table)
    assert early.exit_code == 2 and "1 of 2 shards are missing" in early.stderr
    second = run(
        "teach", "score", examples_file, "--out", table, *model, *adapter, *in_batch, "--num-shards", 2, "--shard", 1
    )
    assert second.exit_code == 0, second.output
    scores = ScoreTable.load(table)
    assert scores.header["model"] == base_model and scores.header["adapter"]
    # 8 examples of 3 passages; two batches of 4 add at most 12 pairs each.
    assert 24 < len(scores) <= 24 + 24
    again = tmp_path / "half.safetensors"
    assert run("teach", "collect", f"{table}.shards", "--out", again, "--dtype", "float16").exit_code == 0
    assert load_file(again)["pair_logits"].dtype == "float16"


def test_the_commands_that_are_printed_work_as_printed(
    run: Run, base_model: str, examples_file: Path, template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A base, a template and lengths that are not the defaults, and names that a shell would cut.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("d2llm.cli.teach.BASE_MODEL", base_model)
    data = shutil.copy(examples_file, tmp_path / "my data.jsonl")
    shutil.copytree(base_model, tmp_path / "a base")
    options = ("--model", "a base", "--template", template, "--query-length", 12, "--hard", 1, "--no-bf16")
    result = run("teach", "tune", data, "--out", "a teacher", *options, "--steps", 1)
    for first, sizes in (("teach", ()), ("train", ("run.max_steps=1", "run.batch_size=4", "student.iem_hidden=8"))):
        assert result.exit_code == 0, result.output
        program, *following = shlex.split(result.stdout.split("next: ")[1])
        assert (program, following[0]) == ("d2llm", first)
        result = run(*following, *sizes)
    assert result.exit_code == 0, result.output
    header = ScoreTable.load("a teacher/scores.safetensors").header
    assert header["model"] == "a base" and header["query_length"] == 12
    assert D2LLM.from_pretrained("student").config.iem_hidden == 8

    Path("corpus.txt").write_text("open the file\nclose the socket\nread the file\n")
    assert run("index", "student", "corpus.txt", "x.index").exit_code == 0
    search = ("search", "file", "--index", "x.index", "--model", "student", "--explain", "--json", "-k", 2)
    judged = run(*search, "--teacher", "a teacher")
    assert judged.exit_code == 0, judged.output
    found = json.loads(judged.stdout)
    assert [hit["rank"] for hit in found] == [1, 2] and all(hit["ranks"]["teacher"] in (1, 2, 3) for hit in found)


def test_both_tasks_from_one_file_to_a_student(
    run: Run, base_model: str, examples_file: Path, template: Path, tmp_path: Path
) -> None:
    examples = read_examples(examples_file)
    data, both = tmp_path / "mixed.jsonl", (tmp_path / "sym.yaml", template)
    write_examples(data, [replace(each, task=("sym", "asym")[i % 2]) for i, each in enumerate(examples * 2)])
    both[0].write_text(TEMPLATE.replace("asym", "sym").replace("right", "same"))
    options = ("--model", base_model, *(part for path in both for part in ("--template", path)))
    brief = ("--steps", 1, "--hard", 1, "--no-bf16")
    assert run("teach", "tune", data, "--out", tmp_path / "both", *options, *brief).exit_code == 0
    tuned = run("teach", "tune", data, "--out", tmp_path / "sym", *options, *brief, "--task", "sym")
    assert tuned.exit_code == 0 and "--task sym" in tuned.output, tuned.output
    for task, adapter in (("sym", "sym"), ("asym", "both")):
        out = ("--out", tmp_path / f"{task}.safetensors", "--task", task)
        scored = run("teach", "score", data, "--adapter", tmp_path / adapter, *out)
        assert scored.exit_code == 0, scored.output
        assert list(ScoreTable.load(tmp_path / f"{task}.safetensors").header["templates"])[-1] == "sym"
    teachers = f"data.teacher={{sym: {tmp_path / 'sym.safetensors'}, asym: [{tmp_path / 'asym.safetensors'}]}}"
    settings = ("run.max_steps=2", "run.eval_steps=1", "run.save_steps=1", "run.batch_size=4", "student.iem_hidden=8")
    files = (f"data.train={data}", f"data.validation={data}", f"base_model={base_model}")
    trained = run("train", *files, f"output_dir={tmp_path / 'student'}", teachers, *settings)
    assert trained.exit_code == 0, trained.output
    logged = read_json(tmp_path / "student" / "checkpoint-2" / "trainer_state.json")["log_history"]
    assert {"eval_mrr", "eval_mrr_sym", "eval_mrr_cosine_asym"} <= {name for entry in logged for name in entry}
    refused = run("teach", "score", data, "--adapter", tmp_path / "sym", "--out", tmp_path / "x")
    assert refused.exit_code == 2 and "templates for ['sym'], got 'asym'" in refused.stderr


def test_in_batch_work_covers_every_pair_that_meets(tmp_path: Path) -> None:
    # One of eleven is held out to watch the run.
    examples = [Example(f"q{i}", f"p{i}") for i in range(11)]
    run, data = run_of(None, batch_size=5, epochs=1.0)
    one = in_batch_work(examples, run, data)
    assert sum(len(work.queries) for work in one) == 2 * 5 * 4
    # A run of one step of two batches meets the same; half an epoch, one batch.
    config = tmp_path / "run.yaml"
    config.write_text("base_model: m\noutput_dir: o\nrun: {batch_size: 5, accumulation_steps: 2, max_steps: 1}\n")
    assert in_batch_work(examples, *run_of(config)) == one
    half = in_batch_work(examples, *run_of(None, batch_size=5, epochs=0.5))
    assert sum(len(work.queries) for work in half) == 5 * 4


def test_train_then_eval(run: Run, base_model: str, examples_file: Path, template: Path, tmp_path: Path) -> None:
    config, student = tmp_path / "run.yaml", tmp_path / "student"
    config.write_text(f"base_model: {base_model}\noutput_dir: {student}\ndata: {{train: {examples_file}}}\n")
    short = ("run.max_steps=1", "run.batch_size=4", "run.bf16=false", "student.iem_hidden=8", "student.num_layers=2")
    refused = run("train", config, *short, "optimizer.warmup_steps=2", "--dry-run")
    assert refused.exit_code == 2 and "this run cannot learn: the run has 1 steps" in refused.stderr
    dry = run("train", config, *short, "optimizer.warmup_steps=1", "--dry-run")
    assert dry.exit_code == 0, dry.output
    # One of the eight is held out.
    assert "examples:  7 (7 asym)" in dry.stdout and "warning:   the warm-up takes 1 of 1 steps" in dry.stdout
    assert [file.name for file in student.iterdir()] == ["preflight.json"]
    trained = run("train", config, *short, "optimizer.warmup_steps=1")
    assert trained.exit_code == 0, trained.output
    assert D2LLM.from_pretrained(student).config.num_layers == 2
    results = tmp_path / "results.json"
    measured = run("eval", student, examples_file, "--json", results)
    assert measured.exit_code == 0, measured.output
    rows = json.loads(results.read_text())["systems"]
    untrained = "untrained LLM, mean-pool cosine"
    assert list(rows) == ["BM25", untrained, "student cosine", "student IEM", "student IEM + 0.2 BM25"]
    assert all(row["queries"] == 8 for row in rows.values())
    assert f"{rows['BM25']['mrr']:.3f}" in measured.output


def test_eval_of_a_beir_folder_keeps_grades(run: Run, student_folder: Path, corpus: Path) -> None:
    folder = corpus.parent
    (folder / "queries.jsonl").write_text('{"_id": "q1", "text": "open the file"}\n{"_id": "q2", "text": "close"}\n')
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td3\t2\nq2\td2\t0\n")
    result = run("eval", student_folder, folder, "--json", folder / "r.json", "--markdown")
    assert result.exit_code == 0 and result.stdout.startswith("| system |"), result.output
    bm25 = json.loads((folder / "r.json").read_text())["systems"]["BM25"]
    assert bm25["queries"] == 1 and bm25["mrr"] == 1.0 and bm25["ndcg@10"] < 1.0


@pytest.mark.parametrize("kind, label, metric", [("nli", "{:.0f}", "ap"), ("sts", "{}", "spearman")])
def test_eval_of_pairs(
    run: Run, student_folder: Path, tmp_path: Path, template: Path, kind: str, label: str, metric: str
) -> None:
    table = tmp_path / "pairs.tsv"
    pairs = [("open the file", "open the file now", 1), ("open the file", "read z", 0), ("close it", "close it up", 1)]
    lines = [f"{first}\t{second}\t{label.format(grade)}" for first, second, grade in pairs]
    table.write_text("sentence1\tsentence2\tlabel\n" + "\n".join(lines) + "\n")
    result = run("eval", student_folder, table, "--kind", kind, "--json", tmp_path / "r.json", "--samples", 100)
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "r.json").read_text())["systems"]
    assert list(rows) == ["BM25", "untrained LLM, mean-pool cosine", "student cosine", "student IEM"]
    assert rows["BM25"][metric] > 0.8


def test_an_encoder_in_int8(run: Run, student_folder: Path, corpus: Path, tmp_path: Path) -> None:
    student, found = D2LLM.from_pretrained(student_folder), []
    for name, flags in (("float", ()), ("int8", ("--int8-encoder",))):
        built = run("index", student_folder, corpus, tmp_path / name, "--dtype", "float32", *flags)
        assert "3 passages" in built.output
        hits = Index.open(tmp_path / name, student).search("open the file", 3, mode="iem")[0]
        found.append({hit.id: hit.score for hit in hits})
    assert found[0] != found[1] and found[0] == pytest.approx(found[1], abs=0.5)
    refused = run("index", student_folder, corpus, tmp_path / "both", "--int8-encoder", "--torch-compile")
    assert refused.exit_code == 2 and "got one that torch compiles" in refused.stderr


def test_index_in_shares(
    run: Run, student_folder: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.index"
    first = run("index", student_folder, corpus, path, "--shard", "1/2")
    assert "share 1 of 2, 3 passages" in first.output, first.output
    with monkeypatch.context() as torchrun:
        torchrun.setenv("WORLD_SIZE", "2")
        torchrun.setenv("RANK", "1")
        assert "share 2 of 2, 0 passages" in run("index", student_folder, corpus, path).output
    assert "3 passages" in run("index", student_folder, corpus, path).output
    for wrong in (("--shard", "3/2"), ("--shard", "1"), ("--shard", "1/2", "--append")):
        refused = run("index", student_folder, corpus, path, *wrong)
        assert refused.exit_code == 2 and "--shard: expected" in refused.stderr


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_index_build_append_delete_verify_search(
    run: Run, student_folder: Path, corpus: Path, tmp_path: Path, dtype: str
) -> None:
    path, more = tmp_path / "x.index", tmp_path / "more.txt"
    built = run("index", student_folder, corpus, path, "--dtype", dtype)
    assert built.exit_code == 0 and "3 passages" in built.output, built.output
    more.write_text("send z\n")
    assert "4 passages" in run("index", student_folder, more, path, "--append").output
    assert "3 passages" in run("index", path, "--delete", "d3").output
    assert "every file as it was written" in run("index", path, "--verify").output
    found = run("search", "open", "the", "file", "--index", path, "--model", student_folder, "-k", 9, "--json")
    hits = json.loads(found.stdout)
    expected = Index.open(path, D2LLM.from_pretrained(student_folder)).search("open the file", 3)[0]
    assert [(hit["id"], hit["score"]) for hit in hits] == [(hit.id, hit.score) for hit in expected]
    text = run("search", "file", "--index", path, "--model", student_folder, "--mode", "bm25", "--lines", 2).stdout
    assert "     open the file\n     of x\n     ...\n" in text
    segment = next(file for file in path.glob("segments/*/passages.jsonl") if b"socket" in file.read_bytes())
    segment.write_bytes(segment.read_bytes().replace(b"socket", b"sacket"))
    damaged = run("index", path, "--verify")
    assert damaged.exit_code == 2 and "passages.jsonl" in damaged.stderr


def test_plain_texts_are_appended_upserted_and_compacted(run: Run, student_folder: Path, tmp_path: Path) -> None:
    path, first, second = tmp_path / "x.index", tmp_path / "first.txt", tmp_path / "second.txt"
    first.write_text("open the file\nclose the file\n")
    second.write_text("read the pipe\n")
    assert run("index", student_folder, first, path).exit_code == 0
    assert "3 passages" in run("index", student_folder, second, path, "--append").output
    first.write_text("open the file\nclose the socket\nsend z\n")
    again = run("index", student_folder, first, path, "--append")
    assert again.exit_code == 2 and "'first.txt:1'" in again.stderr
    assert "4 passages" in run("index", student_folder, first, path, "--upsert").output
    assert "4 passages" in run("index", path, "--compact").output
    assert run("index", path, "--compact", "--verify").exit_code == 2
    found = Index.open(path, D2LLM.from_pretrained(student_folder), verify=True).search("the", 9)[0]
    assert {hit.id: hit.text for hit in found} == {
        "first.txt:1": "open the file",
        "first.txt:2": "close the socket",
        "first.txt:3": "send z",
        "second.txt:1": "read the pipe",
    }
    second.write_text("open it\nthe socket\n")
    rows = run("search", "--queries", second, "--index", path, "--model", student_folder, "-k", 9, "--explain").stdout
    answers = [json.loads(line) for line in rows.splitlines()]
    assert [answer["query"] for answer in answers] == ["open it", "the socket"]
    assert all(len(answer["hits"]) == 4 and answer["hits"][0]["promised"] == 1 for answer in answers)
    for arguments in ((), ("the socket", "--queries", second)):
        refused = run("search", *arguments, "--index", path, "--model", student_folder)
        assert refused.exit_code == 2 and "expected either QUERY or --queries" in refused.stderr


def test_metadata_is_kept_and_filtered_by(run: Run, student_folder: Path, tmp_path: Path) -> None:
    path, rows = tmp_path / "x.index", tmp_path / "rows.jsonl"
    described = [{"lang": "en", "n": 1}, {"lang": ["de", "en"], "n": 2}, {"lang": "zh"}]
    lines = [{"text": f"open the file {i}", "year": 2019 + i, "metadata": each} for i, each in enumerate(described)]
    rows.write_text("\n".join(map(json.dumps, lines)))
    search = ("search", "file", "--index", path, "--model", student_folder)

    def found(filters: Any) -> list[dict[str, Any]]:
        return [hit["metadata"] for hit in json.loads(run(*search, "--filter", json.dumps(filters), "--json").stdout)]

    built = run("index", student_folder, rows, path)
    assert built.exit_code == 0, built.output
    assert sorted(map(str, found({"lang": "en"}))) == sorted(map(str, described[:2]))
    assert '{"lang": "zh"}' in run(*search, "--filter", '{"lang": "zh"}').stdout
    picked = run("index", student_folder, rows, path, "--overwrite", "--field", "year", "--field", "n")
    assert picked.exit_code == 0, picked.output
    assert found({"year": {"gt": 2019}, "n": 2}) == [{"year": 2020, "n": 2}]
    for filters, message in (
        ('{"lang": "en"}', "filters: lang: unknown field; expected one of n, year"),
        ("{}", "filters: expected at least one field"),
        ("lang=en", "--filter: not valid JSON"),
        ("null", "--filter: expected a JSON object"),
    ):
        refused = run(*search, "--filter", filters)
        assert refused.exit_code == 2 and message in refused.stderr
    piped = CliRunner().invoke(
        app, ["index", str(student_folder), "-", f"{path}2"], input="\n".join(map(json.dumps, lines))
    )
    assert piped.exit_code == 0 and Index.open(f"{path}2").ids() == ["-:1", "-:2", "-:3"], piped.output
    rows.write_text(json.dumps({"text": "x", "metadata": {"by": {"first": "A"}}}))
    refused = run("index", student_folder, rows, path, "--append")
    assert refused.exit_code == 2 and "rows.jsonl:1: metadata.by: expected a text, a list of texts" in refused.stderr


def test_ways_to_search_are_measured_and_the_weight_kept(
    run: Run, student_folder: Path, corpus: Path, tmp_path: Path
) -> None:
    path, queries, qrels = tmp_path / "x.index", tmp_path / "queries.jsonl", tmp_path / "qrels.trec"
    assert run("index", student_folder, corpus, path).exit_code == 0
    queries.write_text('{"id": "q", "text": "socket"}\n')
    qrels.write_text("q 0 d2 1\n")
    tune = ("tune-search", student_folder, path, queries, qrels)
    done = run(*tune, "--within", 1, "--write", "--plot", tmp_path / "p.png", "--json", tmp_path / "t.json")
    assert done.exit_code == 0, done.output
    systems = json.loads((tmp_path / "t.json").read_text())["systems"]
    assert systems["bm25"]["ndcg@10"] == 1 and {"ndcg@10", "mrr", "recall@100", "search_ms"} == set(systems["iem"])
    assert "chosen: " in done.output and (tmp_path / "p.png").stat().st_size > 1000
    refused = run(*tune, "--metric", "best")
    assert refused.exit_code == 2 and "metrics: expected ndcg, mrr or map" in refused.stderr


def test_search_without_index_asks_the_library(
    run: Run, student_folder: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = types.ModuleType("d2llm.demo.library")
    index = Index.build(D2LLM.from_pretrained(student_folder), ["close the file"], tmp_path / "library")
    library.open_library = lambda: index  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "d2llm.demo", types.ModuleType("d2llm.demo"))
    monkeypatch.setitem(sys.modules, "d2llm.demo.library", library)
    result = run("search", "close", "it")
    assert result.exit_code == 0 and "close the file" in result.stdout, result.output


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("mine", "absent.jsonl", "out.jsonl"), "absent.jsonl"),
        (("mine", "{examples}", "out.jsonl", "--method", "magic"), "--method: expected one of bm25, vectors, both"),
        (("mine", "{examples}", "out.jsonl", "--method", "both"), "--model: expected a student's folder"),
        (("mine", "{broken}", "out.jsonl"), "broken.jsonl:2:"),
        (("mine", "{examples}", "out.jsonl", "--k", "0"), "k: expected at least 1, got 0"),
        (("train", "absent.yaml"), "absent.yaml: configuration file not found"),
        (("train", "{config}", "run.stepz=3"), "run.stepz: unknown field"),
        (("train", "{config}", "rubbish"), "override: expected name=value, got 'rubbish'"),
        (("eval", "absent", "{examples}"), "absent: no such folder"),
        (("eval", "{student}", "{examples}", "--kind", "x"), "--kind: expected one of ir, nli, sts, got 'x'"),
        (
            ("eval", "{student}", "{examples}", "--first-stage", "x"),
            "--first-stage: expected one of bm25, untrained, cosine, iem",
        ),
        (("eval", "{student}", "{examples}", "--task", "sym"), "expected examples of one task, got none"),
        (("eval", "{student}", "{examples}", "--adapter", "absent"), "absent: expected a folder with teacher.json"),
        (("index", "a", "b"), "arguments: expected MODEL CORPUS PATH, got a b"),
        (("index", "a", "b", "c", "--verify"), "arguments: expected PATH alone"),
        (("index", "x", "--verify", "--append"), "expected one of --append, --upsert, --delete, --compact"),
        (("search", "x", "--model", "{student}"), "--index: expected the index that goes with --model"),
        (("search", "x", "--url", "http://x", "--teacher", "y"), "--url: expected no --index, --model, --channel or"),
        (("search", "x", "--index", "absent.index"), "--model: expected the student that absent.index was built with"),
        (("teach", "score", "{examples}", "--out", "o", "--template", "x"), "template: expected one of"),
        (("teach", "score", "{examples}", "--out", "o", "--template", "x.yaml"), "x.yaml: template file not found"),
        (("teach", "score", "{examples}", "--out", "o", "--template", "{nested}"), "expected texts only"),
        (("teach", "score", "{examples}", "--out", "o", "--dtype", "int8"), "--dtype: expected one of float32"),
        (("teach", "collect", "absent", "--out", "o"), "plan.json: file not found"),
    ],
)
def test_bad_input_is_named(
    run: Run,
    examples_file: Path,
    student_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    files = {"examples": examples_file, "student": student_folder}
    for name, content in {
        "broken.jsonl": '{"query": "a", "positive": "b"}\n{"query": "a"}\n',
        "config.yaml": "base_model: m\noutput_dir: out\n",
        "nested.yaml": TEMPLATE.replace("yes: a", "yes: [a]"),
    }.items():
        (tmp_path / name).write_text(content)
        files[Path(name).stem] = tmp_path / name
    result = run(*(argument.format(**files) for argument in arguments))
    assert result.exit_code == 2, result.output
    assert message in result.stderr and "Traceback" not in result.stderr
    assert not result.stdout and not (tmp_path / "out.jsonl").exists()
