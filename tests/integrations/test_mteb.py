"""MTEB's own classes on local data: what they measure of a student is what our evaluation measures."""

import json
from pathlib import Path

import pytest

pytest.importorskip("mteb")

import mteb
from click.testing import Result
from datasets import Dataset
from mteb.models.models_protocols import EncoderProtocol, SearchProtocol
from typer.testing import CliRunner

from d2llm import D2LLM
from d2llm.cli import app
from d2llm.data.beir import Collection
from d2llm.data.pairs import LabelledPairs
from d2llm.errors import InputError
from d2llm.evaluation.pairs import nli_metrics, sts_metrics
from d2llm.evaluation.retrieval import ir_metrics
from d2llm.integrations.mteb import D2LLMEncoder, D2LLMSearch, pair_task, retrieval_task

VERBS, NOUNS = ("remove", "list", "copy", "rename", "open"), ("file", "folder", "socket", "thread")
QUERIES = {f"q{i}{j}": f"{verb} a {noun}" for i, verb in enumerate(VERBS) for j, noun in enumerate(NOUNS)}
CORPUS = {
    f"p{i}{j}": f"def {verb}_{noun}(path): system.{verb}(path)"
    for i, verb in enumerate(VERBS)
    for j, noun in enumerate(NOUNS)
}
#: Judgements that no ranking fits, so that figures are not all 1.
QRELS = {f"q{i}{j}": {f"p{i}{j}": 2, f"p{i}{(j + 1) % 4}": 1} for i in range(5) for j in range(4)}
COLLECTION = Collection(CORPUS, QUERIES, QRELS)
PAIRS = [(QUERIES[f"q{i}{j}"], QUERIES[f"q{j}{(i + j) % 4}"]) for i in range(5) for j in range(4)]
GRADES = [float((7 * number) % 6) for number in range(len(PAIRS))]


@pytest.fixture(scope="module")
def encoder(student: D2LLM) -> D2LLMEncoder:
    return D2LLMEncoder(student)


@pytest.fixture(scope="module")
def said(student: D2LLM) -> dict[str, dict[str, float]]:
    """What the student says of every query with every passage."""
    pairs = [(query, passage) for query in QUERIES for passage in CORPUS]
    scores = student.score([QUERIES[query] for query, _ in pairs], [CORPUS[passage] for _, passage in pairs], "asym")
    rows = iter(scores.tolist())
    return {query: {passage: next(rows) for passage in CORPUS} for query in QUERIES}


def measured(model: D2LLMEncoder, task: "mteb.AbsTask") -> dict[str, float]:
    result = mteb.evaluate(model, task, cache=None, show_progress_bar=False, co2_tracker=False)
    return result.task_results[0].scores["test"][0]


@pytest.mark.parametrize("kind", [D2LLMEncoder, D2LLMSearch])
def test_retrieval(student: D2LLM, said: dict[str, dict[str, float]], kind: type[D2LLMEncoder]) -> None:
    model = kind(student)
    assert isinstance(model, EncoderProtocol) and isinstance(model, SearchProtocol) == (kind is D2LLMSearch)
    found = measured(model, retrieval_task(COLLECTION, "Functions"))
    expected = ir_metrics(said, QRELS)
    assert 0.2 < expected["ndcg@10"] < 0.99
    for ours, theirs in (("ndcg@10", "ndcg_at_10"), ("map", "map_at_1000"), ("recall@10", "recall_at_10")):
        assert found[theirs] == pytest.approx(expected[ours], abs=1e-4)
    assert (
        found["mrr_at_10"] == pytest.approx(expected["mrr@10"], abs=1e-4) and found["main_score"] == found["ndcg_at_10"]
    )


@pytest.mark.parametrize("kind", [D2LLMEncoder, D2LLMSearch])
def test_reranking(student: D2LLM, said: dict[str, dict[str, float]], kind: type[D2LLMEncoder]) -> None:
    candidates = {query: [*QRELS[query], "p00", "p43", "p21"] for query in QUERIES}
    candidates = {query: list(dict.fromkeys(ids)) for query, ids in candidates.items()}
    found = measured(kind(student), retrieval_task(COLLECTION, "Candidates", candidates))
    among = {query: {each: said[query][each] for each in ids} for query, ids in candidates.items()}
    expected = ir_metrics(among, QRELS)
    assert found["main_score"] == pytest.approx(expected["map"], abs=1e-4) and expected["map"] < 1
    assert found["ndcg_at_10"] == pytest.approx(expected["ndcg@10"], abs=1e-4)


def test_pairs_take_the_symmetric_branch(student: D2LLM, encoder: D2LLMEncoder) -> None:
    said = student.score(*map(list, zip(*PAIRS, strict=True)), "sym")
    similar = measured(encoder, pair_task(LabelledPairs(PAIRS, GRADES), "Similar", "sts"))
    expected = sts_metrics(said, GRADES)
    assert similar["spearman"] == pytest.approx(expected["spearman"], abs=1e-5) == similar["main_score"]
    assert similar["pearson"] == pytest.approx(expected["pearson"], abs=1e-5)
    assert similar["cosine_spearman"] != pytest.approx(expected["spearman"], abs=1e-3)
    labels = [float(grade > 2) for grade in GRADES]
    classified = measured(encoder, pair_task(LabelledPairs(PAIRS, labels), "Same", "nli"))
    assert classified["similarity_ap"] == pytest.approx(nli_metrics(said, labels)["ap"], abs=1e-5)
    assert encoder.task == "sym"


def test_hybrid_search_and_passages_without_text(student: D2LLM) -> None:
    rows = {"id": ["a", "b", "c"], "title": ["remove", "", ""], "text": ["def unlink(path)", " ", "def add(a, b)"]}
    queries = Dataset.from_dict({"id": ["q"], "text": ["add two numbers"]})
    model, task = D2LLMSearch(student, mode="hybrid"), retrieval_task(COLLECTION, "Functions")
    how = {"task_metadata": task.metadata, "hf_split": "test", "hf_subset": "default", "num_proc": None}
    model.index(Dataset.from_dict(rows), **how, encode_kwargs={})
    found = model.search(queries, **how, top_k=5, encode_kwargs={})["q"]
    assert list(found) == ["c", "a"]
    with pytest.raises(InputError, match="expected a corpus of texts, got none in Functions"):
        model.index([{"id": "a", "text": ""}], **how, encode_kwargs={})
    vectors = model.encode([{"text": ["", "add"]}], task_metadata=task.metadata, hf_split="test", hf_subset="default")
    assert not vectors[0].any() and vectors[1].any()
    with pytest.raises(InputError, match=r"inputs\[1\]: expected a text, got None"):
        model.encode([{"text": ["add", None]}], task_metadata=task.metadata, hf_split="test", hf_subset="default")


def test_what_the_student_cannot_do_is_said(encoder: D2LLMEncoder) -> None:
    with pytest.raises(ValueError, match=r"but none overlap with task CIFAR10"):
        mteb.evaluate(encoder, mteb.get_task("CIFAR10"), cache=None)
    with pytest.raises(InputError, match="kind: expected one of"):
        pair_task(LabelledPairs(PAIRS, GRADES), "Similar", "ir")


def test_the_command(student: D2LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, examples, out = (tmp_path / name for name in ("pairs.tsv", "examples.jsonl", "results.json"))
    lines = ["sentence1\tsentence2\tscore"]
    lines += ["\t".join([*pair, str(grade)]) for pair, grade in zip(PAIRS, GRADES, strict=True)]
    table.write_text("\n".join(lines))
    rows = [
        {
            "query": QUERIES[f"q{name[1:]}"],
            "positive": CORPUS[name],
            "negatives": [CORPUS["p00" if name > "p00" else "p01"]],
        }
        for name in CORPUS
    ]
    examples.write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setattr("d2llm.cli.mteb.load_student", lambda folder: student)

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["mteb", "shipped", *arguments])

    done = run(f"sts:{table}", f"rerank:{examples}", str(examples), "--search", "hybrid", "--json", str(out))
    assert done.exit_code == 0, done.output
    results = json.loads(out.read_text())
    assert [(each["task"], each["type"]) for each in results] == [
        ("pairs", "STS"),
        ("examples", "Reranking"),
        ("examples", "Retrieval"),
    ]
    expected = sts_metrics(student.score(*map(list, zip(*PAIRS, strict=True)), "sym"), GRADES)
    assert results[0]["main_score"] == pytest.approx(expected["spearman"], abs=1e-5)
    assert 0.5 < results[2]["main_score"] <= results[1]["main_score"] <= 1 and "ndcg_at_10" in done.output
    wrong = run("NFCorpuss")
    assert wrong.exit_code == 2 and "'NFCorpuss'" in wrong.stderr and "NFCorpus'" in wrong.stderr
    wrong = run("CIFAR10")
    assert wrong.exit_code == 2 and "expected tasks of texts, got CIFAR10 of image" in wrong.stderr
    assert run(str(table), "--search", "full").exit_code == 2
