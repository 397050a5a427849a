"""The quality table: measured once, kept, and written between its marks."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.quality import (
    __main__ as quality,
)
from benchmarks.quality import (
    choices,
    int8,
    labels,
    last_stage,
    price,
    rank_losses,
    seeds,
    sets,
    shapes,
    students,
    teacher_curve,
    trained,
    way,
)
from benchmarks.quality.asked import Asked
from benchmarks.quality.measured import Measured
from d2llm.data.docstrings import Function
from d2llm.data.example import Example
from d2llm.data.validation import Validation
from d2llm.demo import encoder
from d2llm.demo import teacher as demo_teacher
from d2llm.demo.recipe import TEACHER, Phase
from d2llm.files import write_json
from d2llm.student import D2LLM
from d2llm.teacher.model import NO, YES, Teacher
from d2llm.teacher.tuning import TuningConfig
from d2llm.training.run import last_whole
from tests.conftest import TEXTS
from tests.teacher.teacher_models import save_model


def save_student(base_model: str, folder: Path, seed: int = 0) -> Path:
    D2LLM.create(base_model, lora_r=2, iem_hidden=8, seed=seed).save_pretrained(folder)
    return folder


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
    folders = {name: save_student(base_model, tmp_path / name) for name in ("start", "tiny", "other")}
    monkeypatch.setattr(students, "start", lambda work: folders["start"])
    monkeypatch.setattr(students, "sets", lambda cosqa: {"docstrings": lambda: data, "test": lambda: data})
    document = tmp_path / "quality.md"
    names = ("docstrings", "test")
    document.write_text("".join(f"<!-- {name} -->\nold\n<!-- /{name} -->\n" for name in names), encoding="utf-8")
    monkeypatch.setattr(quality, "DOCUMENT", document)
    work = tmp_path / "work"
    arguments = ["students", "--work", str(work), "--student", str(folders["tiny"])]
    arguments += ["--others", f"other={folders['other']}", "--write"]
    assert quality.main(arguments) == 0
    table = document.read_text(encoding="utf-8")
    ranks = {file.stem for file in (work / "students" / "ranks" / "docstrings").iterdir()}
    ways = ("cosine", "IEM", "hybrid")
    assert ranks == {"BM25", *(f"{name}, {way}" for name in ("MiniLM", "shipped", "other") for way in ways)}
    # What a table reports on is not read unless it is asked for.
    assert not (work / "students" / "ranks" / "test").exists()
    found = np.load(work / "students" / "ranks" / "docstrings" / "BM25.npy")
    # A set that was not read keeps its table.
    assert f"| BM25 | {found.mean():.3f} |" in table and table.count("old") == 1

    monkeypatch.setattr(D2LLM, "from_pretrained", lambda *_: pytest.fail("measured again"))
    assert quality.main(arguments) == 0
    assert document.read_text(encoding="utf-8") == table
    assert f"{found.mean():.3f}" in capsys.readouterr().out


def test_test_sets_are_measured_where_they_are_asked_for() -> None:
    names = ("docstrings", "test")
    assert Asked(Path()).chosen(names) == ["docstrings"] and Asked(Path(), tests=True).chosen(names) == [*names]
    assert Asked(Path(), only=("test",)).chosen(names) == ["test"]


def test_an_unknown_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        quality.main(["nothing"])
    assert "expected some of students, last-stage" in capsys.readouterr().err


def test_every_part_has_its_place_in_the_document() -> None:
    text = quality.DOCUMENT.read_text(encoding="utf-8")
    several = {"students": sets.sets(Path()), "last-stage": [f"{name}-teacher" for name in last_stage.SETS]}
    several["sentence-pairs"] = ["sick-nli", "sick-sts", "trecqa"]
    for part in quality.PARTS:
        for block in several.get(part, [part]):
            assert text.count(f"<!-- {block} -->") == 1, block


def test_choices_are_trained_once_and_held_against_the_first(
    base_model: str, data: Validation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = [Example(query, data.passages[i]) for i, query in enumerate(data.queries)]
    monkeypatch.setattr(choices, "STUDENT", {"lora_r": 2, "iem_hidden": 8})
    monkeypatch.setattr(choices, "TRAINING", replace(choices.TRAINING, batch_size=2))
    monkeypatch.setattr(choices, "examples", lambda work: examples)
    monkeypatch.setattr(choices, "sets", lambda cosqa: {name: lambda: data for name in choices.SETS})
    some = ("the recipe", "mean pooling")
    monkeypatch.setattr(
        choices, "CHOICES", {name: replace(choices.CHOICES[name], steps=2, base=base_model) for name in some}
    )
    asked = Asked(tmp_path)
    lines = choices.blocks(asked)[choices.PART]
    assert [line.split(" | ")[0] for line in lines[2:]] == [f"| {name}" for name in some]
    pooling = {name: D2LLM.from_pretrained(tmp_path / choices.PART / name / "student").pma for name in some}
    start = D2LLM.create(base_model, lora_r=2, iem_hidden=8).pma
    moved = {name: not torch.equal(pma.S, start.S) for name, pma in pooling.items()}
    assert moved == {"the recipe": True, "mean pooling": False}
    monkeypatch.setattr(choices, "train_phase", lambda *_: pytest.fail("trained again"))
    assert choices.blocks(asked)[choices.PART] == lines
    # An arm that was not measured has no line yet.
    monkeypatch.setitem(choices.CHOICES, "other", choices.Choice())
    assert choices.blocks(replace(asked, only=some))[choices.PART] == lines


def test_a_price_is_told_of_what_was_measured(
    base_model: str,
    data: Validation,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = Asked(tmp_path, student=save_student(base_model, tmp_path / "student"))
    assert price.blocks(asked) == {} and "are to be measured first" in capsys.readouterr().out
    monkeypatch.setattr(price, "PICTURE", tmp_path / "quality.png")
    monkeypatch.setattr(price, "sets", lambda cosqa: {name: lambda: data for name in price.SETS})
    model = save_model(tmp_path / "llm")
    monkeypatch.setattr(price.Teacher, "from_pretrained", lambda *_, load=Teacher.from_pretrained: load(model))
    found, judged = (Measured(tmp_path, part) for part in (students.PART, last_stage.PART))
    for name in price.SETS:
        for number, system in enumerate(price.SYSTEMS):
            (judged if system == last_stage.BOTH else found).keep(name, system, np.full(6, number / 10))
    lines = {line.split(" | ")[0]: line for line in price.blocks(asked)[price.PART]}
    assert lines["| BM25"] == "| BM25 | - | 0.000 | 0.000 |" and (tmp_path / "quality.png").stat().st_size > 10_000
    millions = {system: price.multiply_adds(asked, data)[system] for system in price.SYSTEMS[1:]}
    student = D2LLM.from_pretrained(asked.student)
    tokens = np.mean([len(student.tokenizer(query)["input_ids"]) for query in data.queries])
    own = sum(
        weight.numel() for name, weight in student.backbone.named_parameters() if name.endswith("base_layer.weight")
    )
    assert own and millions["MiniLM, cosine"] == pytest.approx(tokens * own + len(data.passages) * student.dim)
    assert millions["shipped, IEM"] - millions["shipped, cosine"] == len(data.passages) * (8**2 - student.dim)
    assert millions[last_stage.BOTH] > millions["shipped, hybrid"] == millions["shipped, IEM"]


def test_students_of_a_recipe_are_made_once(
    base_model: str, data: Validation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def make(out: Path, phase: Phase) -> None:
        made.append(phase.seed)
        save_student(base_model, out / "student")

    monkeypatch.setattr(trained, "make", make)
    assert trained.by_recipe(tmp_path, 1) == trained.by_recipe(tmp_path, 1) == tmp_path / "students" / "1" / "student"
    assert made == [1]
    monkeypatch.setattr(trained, "STUDENT_MODEL", base_model)
    monkeypatch.setattr(trained, "examples", lambda work: [Example(query, query) for query in data.queries])
    start = D2LLM.from_pretrained(trained.start(tmp_path))
    assert trained.start(tmp_path).is_dir() and start.config.query_length == 32


def test_a_way_is_gone_once_and_measured_at_several_shares(
    base_model: str, data: Validation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = [Example(query, data.passages[i]) for i, query in enumerate(data.queries)]
    phase, architecture = Phase(2, lr=1e-2, batch_size=4), {"lora_r": 2, "iem_hidden": 8}
    trainings: list[str | None] = []

    def train(given: list[Example], out: Path, share: float) -> D2LLM:
        checkpoint = last_whole(out / "checkpoints")
        trainings.append(checkpoint and checkpoint.name)
        return encoder.train(given, out, base_model, phase, share=share)

    monkeypatch.setattr(encoder, "STUDENT", architecture)
    monkeypatch.setattr(trained, "train", train)
    monkeypatch.setattr(trained, "examples", lambda work: examples)
    monkeypatch.setattr(way, "start", lambda work: save_student(base_model, tmp_path / "start"))
    monkeypatch.setattr(way, "sets", lambda cosqa: {"docstrings": lambda: data})
    monkeypatch.setattr(way, "SHARES", (0.5, 1.0))
    lines = way.blocks(Asked(tmp_path))[way.PART]
    assert [line.split(" | ")[1] for line in lines[2:]] == ["0%", "50%", "100%"]
    # The second share is of the first one's training, and as far from the start as it says.
    assert trainings == [None, "checkpoint-2"]
    start, *shares = (
        D2LLM.from_pretrained(folder).iem.linear1.weight
        for folder in (
            tmp_path / "students" / "way" / "start",
            *(tmp_path / "students" / f"{share} of the way" for share in ("50%", "100%")),
        )
    )
    torch.testing.assert_close(shares[0] - start, (shares[1] - start) / 2)
    assert not torch.equal(shares[1], start)
    assert way.blocks(Asked(tmp_path))[way.PART] == lines and len(trainings) == 2


def test_held_out_pairs_are_searched_for_among_the_whole_library(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [Example("one?", "a"), Example("two?", "b"), Example("one?", "c"), Example("three?", "a")]
    monkeypatch.setattr(sets, "standard_library_pairs", lambda: pairs)
    data = sets.over_library([pairs[0], pairs[2]])
    assert data.passages == ("a", "b", "c") and data.queries == ("one?",) and data.relevant == (frozenset({0, 2}),)


def test_cosqa_is_read_by_its_numbers(tmp_path: Path) -> None:
    write_json(tmp_path / "codes.json", {"def a(): 1": 7, "def b(): 2": 4})
    write_json(tmp_path / "dev.json", [{"query": "how to b", "code": 4}])
    data = sets.cosqa(tmp_path)
    assert data.queries == ("how to b",) and data.relevant == (frozenset({1}),)


def test_functions_stand_below_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"def load(fp): 1": "json.load", "def load(fp): 2": "json.load#2"}
    monkeypatch.setattr(sets, "standard_library_names", lambda: names)
    data = sets.named(Validation(("read json?",), tuple(reversed(names)), (frozenset({1}),)))
    assert data.passages == ("json.load\ndef load(fp): 2", "json.load\ndef load(fp): 1")
    assert data.relevant == (frozenset({1}),)


def test_functions_stand_below_their_docstrings(monkeypatch: pytest.MonkeyPatch) -> None:
    load, dump = (
        Function("json.load", "Read it.", "def load(fp):", "def load(fp): 1"),
        Function("json.dump", "Write.", "def dump(fp):", "def dump(fp): 2"),
    )
    monkeypatch.setattr(sets, "standard_library_functions", lambda: [load, dump])
    data = sets.documented(Validation(("write?",), (dump.code, load.code), (frozenset({0}),)))
    assert data.passages == ("json.dump\ndef dump(fp):\nWrite.", "json.load\ndef load(fp):\nRead it.")
    assert data.relevant == (frozenset({0}),)


def test_functions_are_put_down_in_several_ways(
    base_model: str, data: Validation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [Function(f"a.f{i}", f"{text}. More.", "def f():", data.passages[i]) for i, text in enumerate(TEXTS)]
    monkeypatch.setattr(shapes, "standard_library_functions", lambda: found)
    whole = replace(data, passages=tuple(f"def f():\n    '''{text}.'''\n    return 1" for text in TEXTS))
    monkeypatch.setattr(shapes, "sets", lambda cosqa: {"everyday": lambda: data, "cosqa": lambda: whole})
    asked = Asked(tmp_path, cosqa=tmp_path, student=save_student(base_model, tmp_path / "student"))
    assert [shape(found[0]) for shape in shapes.SHAPES.values()] == [
        f"a.f0\ndef f():\n{TEXTS[0]}. More.",
        data.passages[0],
        f"a.f0\n{data.passages[0]}",
        f"a.f0\n{TEXTS[0]}. More.\n{data.passages[0]}",
        f"a.f0\ndef f():\n{TEXTS[0]}. More.",
        f"a.f0\ndef f():\n{TEXTS[0]}.",
    ]
    short = shapes.beginnings(["  " + whole.passages[0], "def f(): return 1", "def f(:"])
    assert short == [f"def f():\n{TEXTS[0]}.", "def f(): return 1", "def f(:"]
    _, _, *lines = shapes.blocks(asked)[shapes.PART]
    assert [line.split(": ")[0] for line in lines] == ["| everyday"] * 6 + ["| cosqa"] * 2
    # Each set's first is what its others are held against.
    assert [line.endswith(" |  |") for line in lines] == [True] + [False] * 5 + [True, False]
    monkeypatch.setattr(D2LLM, "from_pretrained", lambda *_: pytest.fail("measured again"))
    assert shapes.blocks(asked)[shapes.PART][2:] == lines


def test_labels_are_held_against_the_hidden_ones() -> None:
    truth = Validation(("a?", "b?"), ("a", "b", "c"), (frozenset({0}), frozenset({1, 2})))
    found = labels.Recovered.of([("a?", "a"), ("a?", "b"), ("b?", "c")], truth)
    assert (found.called.tolist(), found.right.tolist(), found.relevant.tolist()) == ([2, 1], [1, 1], [1, 2])
    # Of three labels two are right, and of three right ones two are found.
    assert found.row == "2 of 2 | 3 | 0.667 (0.500 to 1.000) | 0.667 (0.500 to 1.000)"


def test_losses_are_held_against_labels_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = Measured(tmp_path, rank_losses.PART)
    for number, loss in enumerate(("start", *rank_losses.LOSSES)):
        for seed in range(3):
            measured.keep("docstrings", f"{loss}, {seed}", np.full(4, (number + seed) / 10))
    monkeypatch.setattr(rank_losses, "setting", lambda: pytest.fail("measured again"))
    start, alone, *others = rank_losses.blocks(Asked(tmp_path))[rank_losses.PART][2:]
    assert start == "| start | 0.100 ± 0.100 | 0.000 to 0.200 | -0.100 to -0.100 |"
    assert alone.endswith("| 0.100 to 0.300 |  |") and len(others) == 5


def test_a_teacher_orders_the_best_anew(data: Validation, tmp_path: Path) -> None:
    # Weights far from the default's, so that texts matter to the logits.
    teacher = Teacher.from_pretrained(save_model(tmp_path / "llm", initializer_range=0.3))
    logits = np.random.default_rng(0).normal(size=(len(data.queries), len(data.passages)))
    alone, both = last_stage.reordered(teacher, data, logits, tmp_path / "judged")
    for row, (query, relevant) in enumerate(zip(data.queries, data.relevant, strict=True)):
        best = np.argsort(-logits[row])[: last_stage.BEST]
        judged, _ = teacher.judge([query] * len(best), [data.passages[i] for i in best], "asym")
        margins = judged[:, YES] - judged[:, NO]
        scaled = [(each - each.mean()) / each.std() for each in (margins, logits[row][best])]
        for found, scores in ((alone, margins), (both, sum(scaled))):
            order = [*best[np.argsort(-scores)], *np.argsort(-logits[row])[last_stage.BEST :]]
            assert found[row] == pytest.approx(1 / (1 + order.index(next(iter(relevant)))))


def test_a_teacher_is_asked_along_its_way(base_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [Example(f"q{i}?", f"def f{i}(): ...") for i in range(12)]
    model, student = save_model(tmp_path / "llm"), save_student(base_model, tmp_path / "student")
    few = TuningConfig(steps=2, groups_per_step=2)
    for module in (demo_teacher, teacher_curve):
        monkeypatch.setattr(module, "BASE_MODEL", model)
    monkeypatch.setattr(demo_teacher, "TEACHER", replace(TEACHER, num_layers=1, first=few, second=few))
    monkeypatch.setattr(demo_teacher, "standard_library_pairs", lambda: pairs)
    monkeypatch.setattr(sets, "standard_library_pairs", lambda: pairs)
    monkeypatch.setattr(teacher_curve, "STEPS", (1, 2))
    monkeypatch.setattr(teacher_curve, "validation_pairs", lambda: pairs[:3])
    monkeypatch.setattr(teacher_curve, "library_vectors", lambda student, passages: student.encode(passages, "passage"))
    others = [Example(f"p{i}?", f"def g{i}(): ...") for i in range(12)]
    monkeypatch.setattr(teacher_curve, "examples", lambda work: pairs + others)
    asked = Asked(tmp_path / "work", student=student)
    lines = teacher_curve.blocks(asked)[teacher_curve.PART]
    assert [line.split(" | ")[0] for line in lines[3:]] == ["| 0", "| 1", "| 2"]
    monkeypatch.setattr(teacher_curve, "tune_teacher", lambda *_: pytest.fail("tuned again"))
    assert teacher_curve.blocks(asked)[teacher_curve.PART] == lines


def test_students_of_several_seeds_are_held_against_their_start(
    base_model: str, data: Validation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, *others = (save_student(base_model, tmp_path / f"{seed}", seed) for seed in range(4))
    monkeypatch.setattr(seeds, "sets", lambda cosqa: {"docstrings": lambda: data, "test": lambda: data})
    monkeypatch.setattr(seeds, "start", lambda work: start)
    monkeypatch.setattr(seeds, "by_recipe", lambda work, seed: others[seed])
    _, _, line = seeds.blocks(Asked(tmp_path / "work", student=others[0]))[seeds.PART]
    work = tmp_path / "work" / seeds.PART
    means = [np.load(work / "ranks" / "docstrings" / f"seed {seed}, IEM.npy").mean() for seed in range(3)]
    cosine = np.load(work / "ranks" / "docstrings" / "start, cosine.npy").mean()
    assert line.startswith(f"| docstrings | {cosine:.3f} | ")
    assert f" | {np.mean(means):.3f} ± {np.std(means, ddof=1):.3f} | " in line
    assert not (work / "ranks" / "test").exists(), "a set that no setting is chosen by was read"


def test_int8_is_held_against_float(
    base_model: str, data: Validation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = save_student(base_model, tmp_path / "student")
    monkeypatch.setattr(int8, "sets", lambda cosqa: {"docstrings": lambda: data})
    _, _, *lines = int8.blocks(Asked(tmp_path, student=student))[int8.PART]
    assert [line.split(" | ")[1] for line in lines] == ["cosine", "IEM", "hybrid"]
    folders = [tmp_path / int8.PART / kind for kind in ("float", f"int8/{int8.PART}")]
    means = [np.load(folder / "ranks" / "docstrings" / "student, IEM.npy").mean() for folder in folders]
    assert f"| docstrings | IEM | {means[0]:.3f} | {means[1]:.3f} | " in lines[1]
