"""The quality table: measured once, kept, and written between its marks."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import int8_encoder, labels, quality, rank_losses, seeds, teacher_curve
from d2llm.data.docstrings import Function
from d2llm.data.example import Example
from d2llm.data.jsonl import write_examples
from d2llm.data.validation import Validation
from d2llm.demo import teacher as demo_teacher
from d2llm.demo.encoder import TRAINING_FILE
from d2llm.demo.recipe import TEACHER
from d2llm.files import write_json
from d2llm.student import D2LLM
from d2llm.teacher.model import NO, YES, Teacher
from d2llm.teacher.tuning import TuningConfig
from tests.conftest import TEXTS
from tests.teacher.teacher_models import save_model


@pytest.fixture
def data() -> Validation:
    return Validation(tuple(TEXTS[:6]), tuple(f"def {text}" for text in TEXTS), tuple(frozenset({i}) for i in range(6)))


def test_a_set_is_measured_once_and_gone_on_with(
    base_model: str,
    data: Validation,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    D2LLM.create(base_model, lora_r=2, iem_hidden=8).save_pretrained(tmp_path / "student")
    monkeypatch.setattr(quality, "sets", lambda cosqa: {"docstrings": lambda: data, "test": lambda: data})
    document = tmp_path / "quality.md"
    names = ("docstrings", "test")
    document.write_text("".join(f"<!-- {name} -->\nold\n<!-- /{name} -->\n" for name in names), encoding="utf-8")
    monkeypatch.setattr(quality, "DOCUMENT", document)
    arguments = ["--work", str(tmp_path / "work"), "--student", f"tiny={tmp_path / 'student'}", "--write"]
    assert quality.main(arguments) == 0
    table = document.read_text(encoding="utf-8")
    ranks = {file.stem for file in (tmp_path / "work" / "ranks" / "docstrings").iterdir()}
    assert ranks == {"BM25", "tiny, cosine", "tiny, IEM", "tiny, hybrid"}
    # What a table reports on is not read unless it is asked for by name.
    assert not (tmp_path / "work" / "ranks" / "test").exists()
    found = np.load(tmp_path / "work" / "ranks" / "docstrings" / "BM25.npy")
    # A set that was not read keeps its table.
    assert f"| BM25 | {found.mean():.3f} |" in table and table.count("old") == 1

    monkeypatch.setattr(quality.D2LLM, "from_pretrained", lambda *_: pytest.fail("measured again"))
    assert quality.main(arguments) == 0
    assert document.read_text(encoding="utf-8") == table
    assert f"{found.mean():.3f}" in capsys.readouterr().out


def test_held_out_pairs_are_searched_for_among_the_whole_library(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [Example("one?", "a"), Example("two?", "b"), Example("one?", "c"), Example("three?", "a")]
    monkeypatch.setattr(quality, "standard_library_pairs", lambda: pairs)
    data = quality.over_library([pairs[0], pairs[2]])
    assert data.passages == ("a", "b", "c") and data.queries == ("one?",) and data.relevant == (frozenset({0, 2}),)


def test_cosqa_is_read_by_its_numbers(tmp_path: Path) -> None:
    write_json(tmp_path / "codes.json", {"def a(): 1": 7, "def b(): 2": 4})
    write_json(tmp_path / "dev.json", [{"query": "how to b", "code": 4}])
    data = quality.cosqa(tmp_path)
    assert data.queries == ("how to b",) and data.relevant == (frozenset({1}),)


def test_functions_stand_below_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"def load(fp): 1": "json.load", "def load(fp): 2": "json.load#2"}
    monkeypatch.setattr(quality, "standard_library_names", lambda: names)
    data = quality.named(Validation(("read json?",), tuple(reversed(names)), (frozenset({1}),)))
    assert data.passages == ("json.load\ndef load(fp): 2", "json.load\ndef load(fp): 1")
    assert data.relevant == (frozenset({1}),)


def test_functions_stand_below_their_docstrings(monkeypatch: pytest.MonkeyPatch) -> None:
    load, dump = (
        Function("json.load", "Read it.", "def load(fp): 1"),
        Function("json.dump", "Write.", "def dump(fp): 2"),
    )
    monkeypatch.setattr(quality, "standard_library_functions", lambda: [load, dump])
    data = quality.documented(Validation(("write?",), (dump.code, load.code), (frozenset({0}),)))
    assert data.passages == ("json.dump\nWrite.\ndef dump(fp): 2", "json.load\nRead it.\ndef load(fp): 1")
    assert data.relevant == (frozenset({0}),)


def test_labels_are_held_against_the_hidden_ones() -> None:
    truth = Validation(("a?", "b?"), ("a", "b", "c"), (frozenset({0}), frozenset({1, 2})))
    found = labels.Recovered.of([("a?", "a"), ("a?", "b"), ("b?", "c")], truth)
    assert (found.called.tolist(), found.right.tolist(), found.relevant.tolist()) == ([2, 1], [1, 1], [1, 2])
    # Of three labels two are right, and of three right ones two are found.
    assert found.row == "2 of 2 | 3 | 0.667 (0.500 to 1.000) | 0.667 (0.500 to 1.000)"


def test_losses_are_held_against_labels_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = quality.Measured(tmp_path)
    for number, loss in enumerate(("start", *rank_losses.LOSSES)):
        for seed in range(3):
            measured.keep("rank-losses", f"{loss}, {seed}", np.full(4, (number + seed) / 10))
    monkeypatch.setattr(rank_losses, "setting", lambda: pytest.fail("measured again"))
    rank_losses.measure(measured, 3)
    start, alone, *others = rank_losses.table(measured, 3)[2:]
    assert start == "| start | 0.100 ± 0.100 | 0.000 to 0.200 | -0.100 to -0.100 |"
    assert alone.endswith("| 0.100 to 0.300 |  |") and len(others) == 5


def test_a_teacher_orders_the_best_anew(data: Validation, tmp_path: Path) -> None:
    # Weights far from the default's, so that texts matter to the logits.
    teacher = Teacher.from_pretrained(save_model(tmp_path / "llm", initializer_range=0.3))
    logits = np.random.default_rng(0).normal(size=(len(data.queries), len(data.passages)))
    alone, both = quality.reordered(teacher, data, logits, tmp_path / "judged")
    for row, (query, relevant) in enumerate(zip(data.queries, data.relevant, strict=True)):
        best = np.argsort(-logits[row])[: quality.BEST]
        judged, _ = teacher.judge([query] * len(best), [data.passages[i] for i in best], "asym")
        margins = judged[:, YES] - judged[:, NO]
        scaled = [(each - each.mean()) / each.std() for each in (margins, logits[row][best])]
        for found, scores in ((alone, margins), (both, sum(scaled))):
            order = [*best[np.argsort(-scores)], *np.argsort(-logits[row])[quality.BEST :]]
            assert found[row] == pytest.approx(1 / (1 + order.index(next(iter(relevant)))))


def test_a_teacher_is_asked_along_its_way(
    base_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = [Example(f"q{i}?", f"def f{i}(): ...") for i in range(12)]
    model, student = save_model(tmp_path / "llm"), tmp_path / "student"
    D2LLM.create(base_model, lora_r=2, iem_hidden=8).save_pretrained(student)
    few = TuningConfig(steps=2, groups_per_step=2)
    for module in (demo_teacher, teacher_curve):
        monkeypatch.setattr(module, "BASE_MODEL", model)
    monkeypatch.setattr(demo_teacher, "TEACHER", replace(TEACHER, num_layers=1, first=few, second=few))
    monkeypatch.setattr(demo_teacher, "standard_library_pairs", lambda: pairs)
    monkeypatch.setattr(quality, "standard_library_pairs", lambda: pairs)
    monkeypatch.setattr(teacher_curve, "STEPS", (1, 2))
    monkeypatch.setattr(teacher_curve, "STUDENT", student)
    monkeypatch.setattr(teacher_curve, "validation_pairs", lambda: pairs[:3])
    monkeypatch.setattr(teacher_curve, "library_vectors", lambda student, passages: student.encode(passages, "passage"))
    others = [Example(f"p{i}?", f"def g{i}(): ...") for i in range(12)]
    write_examples(tmp_path / "work" / "student" / TRAINING_FILE, pairs + others)
    assert teacher_curve.main(["--work", str(tmp_path / "work")]) == 0
    rows = [line.split(" | ")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert rows[-3:] == ["| 0", "| 1", "| 2"]
    monkeypatch.setattr(teacher_curve, "tune_teacher", lambda *_: pytest.fail("tuned again"))
    assert teacher_curve.main(["--work", str(tmp_path / "work")]) == 0


def test_students_of_several_seeds_are_held_against_their_start(
    base_model: str, data: Validation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [str(tmp_path / name) for name in ("start", "one", "two")]
    for seed, folder in enumerate(folders):
        D2LLM.create(base_model, lora_r=2, iem_hidden=8, seed=seed).save_pretrained(folder)
    monkeypatch.setattr(seeds, "sets", lambda cosqa: {"docstrings": lambda: data, "test": lambda: data})
    document = tmp_path / "quality.md"
    document.write_text("<!-- seeds -->\n<!-- /seeds -->\n", encoding="utf-8")
    monkeypatch.setattr(seeds, "DOCUMENT", document)
    work = tmp_path / "work"
    assert seeds.main(["--work", str(work), "--start", folders[0], "--student", *folders[1:], "--write"]) == 0
    _, _, line, _ = document.read_text(encoding="utf-8").splitlines()[1:]
    means = [np.load(work / "ranks" / "docstrings" / f"seed {seed}, IEM.npy").mean() for seed in range(2)]
    start = np.load(work / "ranks" / "docstrings" / "start, cosine.npy").mean()
    assert line.startswith(f"| docstrings | {start:.3f} | ")
    assert f" | {np.mean(means):.3f} ± {np.std(means, ddof=1):.3f} | " in line
    assert not (work / "ranks" / "test").exists(), "a set that no setting is chosen by was read"


def test_int8_is_held_against_float(
    base_model: str, data: Validation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    D2LLM.create(base_model, lora_r=2, iem_hidden=8).save_pretrained(tmp_path / "student")
    monkeypatch.setattr(int8_encoder, "sets", lambda cosqa: {"docstrings": lambda: data, "test": lambda: data})
    document = tmp_path / "quality.md"
    document.write_text("<!-- int8-encoder -->\n<!-- /int8-encoder -->\n", encoding="utf-8")
    monkeypatch.setattr(int8_encoder, "DOCUMENT", document)
    arguments = ["--work", str(tmp_path / "work"), "--student", str(tmp_path / "student"), "--write"]
    assert int8_encoder.main(arguments) == 0
    lines = document.read_text(encoding="utf-8").splitlines()[3:-1]
    assert [line.split(" | ")[1] for line in lines] == ["cosine", "IEM", "hybrid"]
    means = [np.load(tmp_path / f"work/{kind}/ranks/docstrings/student, IEM.npy").mean() for kind in ("float", "int8")]
    assert f"| docstrings | IEM | {means[0]:.3f} | {means[1]:.3f} | " in lines[1]
