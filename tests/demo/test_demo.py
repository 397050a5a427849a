"""The whole demonstration on a tiny model, and what the package ships."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from d2llm.compact import restore
from d2llm.data.docstrings import Function, by_name, hold_out
from d2llm.data.example import Example, text_id
from d2llm.data.jsonl import write_examples
from d2llm.demo.library import open_library
from d2llm.demo.recipe import DemoRecipe, Phase
from d2llm.demo.run import QUESTIONS, run_demo
from d2llm.files import read_json
from d2llm.index import Index
from d2llm.shipped import BASE_MODEL, DOCUMENTED_VECTORS, SCORES, STUDENT, TEACHER, VECTORS
from d2llm.student import D2LLM
from d2llm.teacher.scores import ScoreTable
from tests.teacher.teacher_models import save_model

SMALL = DemoRecipe(
    distil=Phase(5, lr=1e-3, batch_size=8, negatives=1),
    scored_examples=16,
    student={"lora_r": 2, "passage_length": 24, "lora_dropout": 0.0, "base_dtype": "bfloat16"},
    first=Phase(3, lr=1e-3, batch_size=8, decay=False),
)


@pytest.fixture(scope="module")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    verbs, nouns = ("open", "close", "read", "write", "send"), ("file", "socket", "pipe", "lock", "queue", "date")
    examples = [Example(f"how to {v} the {n}", f"def {v}_{n}({n}): {n}.{v}()") for v in verbs for n in nouns]
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    write_examples(path, examples)
    return path


def test_demo_runs_on_another_model_and_other_data(
    pairs_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_model(tmp_path / "model")
    out = tmp_path / "out"
    comparison = run_demo(out, model=model, data=pairs_file, recipe=SMALL)

    names = [row.name for row in comparison.rows]
    assert names[:1] == ["BM25"] and "student IEM" in names and "student IEM, trained without teacher" in names
    assert any(name.startswith("teacher") for name in names)
    assert all(0 < row.metrics["mrr"] <= 1 for row in comparison.rows)
    assert list(read_json(out / "comparison.json")["systems"]) == names
    baselines = [each.baseline for each in comparison.contrasts]
    assert baselines == names[1:4] and all(each.system == "student IEM" for each in comparison.contrasts)
    assert all(each.found.low <= each.found.value <= each.found.high for each in comparison.contrasts)
    assert (out / "demo.png").read_bytes().startswith(b"\x89PNG")
    parts = {name for entry in read_json(out / "losses.json") for name in entry if name.startswith("loss_")}
    assert len(parts) == 5
    student = D2LLM.from_pretrained(out / "student")
    hits = Index.open(out / "index", student).search("read the pipe", 30)[0]
    assert len({hit.text for hit in hits}) == 30
    printed = capsys.readouterr().out
    assert "d2llm search" in printed and "held-out queries" in printed

    shards = sorted((out / "scores").iterdir())
    before = [shard.stat().st_mtime_ns for shard in shards]
    run_demo(out, model=model, data=pairs_file, recipe=SMALL)
    assert [shard.stat().st_mtime_ns for shard in shards] == before, "scores that were there were made again"


def test_shipped_scores_name_their_teacher_and_cover_the_held_out_candidates(
    library_pairs: tuple[Example, ...],
) -> None:
    table = ScoreTable.load(SCORES)
    assert table.header["model"] == BASE_MODEL
    settings = read_json(TEACHER / "teacher.json")
    assert settings["prompt"] == table.header["prompt"]
    for name in ("num_layers", "query_length", "passage_length"):
        assert table.header[name] == settings[name]
    assert [table.header["templates"][each["task"]] for each in settings["templates"]] == [
        each["text"] for each in settings["templates"]
    ]
    _, held_out = hold_out(list(library_pairs))
    judged = [
        s for pair in held_out if (s := table.probability(text_id(pair.query), text_id(pair.positive))) is not None
    ]
    assert len(judged) > 100
    # A teacher that tells nothing apart would give its positives one half.
    assert np.mean(judged) > 0.6


def test_shipped_student_answers_over_the_standard_library() -> None:
    index = open_library()
    assert len(index) > 4000
    answers = [{f"datetime.{name}.fromisoformat" for name in ("date", "datetime")}]
    answers += [
        {f"textwrap.{name}" for name in ("fill", "wrap", "TextWrapper.fill", "TextWrapper.wrap")},
        {"heapq.merge"},
    ]
    for answer, hits in zip(answers, index.search(list(QUESTIONS), 3, mode="iem"), strict=True):
        assert hits[0].id in answer
        assert all(hit.text.startswith(hit.id.partition("#")[0] + "\n") for hit in hits)


@pytest.mark.parametrize("file", [VECTORS, DOCUMENTED_VECTORS], ids=lambda file: file.stem)
def test_shipped_vectors_are_those_of_the_shipped_student(
    library_functions: tuple[Function, ...], library_pairs: tuple[Example, ...], file: Path
) -> None:
    student = D2LLM.from_pretrained(STUDENT)
    shipped = {name: value.numpy() for name, value in restore(load_file(file)).items()}
    rows = {row.tobytes().hex(): i for i, row in enumerate(shipped["ids"])}
    documented = [function.documented for function in by_name(library_functions).values()]
    given = [pair.positive for pair in library_pairs] if file == VECTORS else documented
    passages = [passage for passage in given if text_id(passage) in rows][::400]
    assert passages
    live = student.encode(passages, kind="passage")
    kept = shipped["vectors"][[rows[text_id(passage)] for passage in passages]]
    cosine = (live * kept).sum(1) / np.linalg.norm(live, axis=1) / np.linalg.norm(kept, axis=1)
    assert cosine.min() > 0.99
