"""What a student on an encoder learns from shares no text with validation and test."""

from pathlib import Path

import pytest
import torch

from d2llm.data.docstrings import Function, hold_out
from d2llm.data.example import Example
from d2llm.data.questions import read_questions
from d2llm.demo import corpus, encoder
from d2llm.demo.packages import PACKAGES
from d2llm.demo.recipe import Phase
from d2llm.student import D2LLM


def test_training_is_apart_from_validation_and_test(
    library_functions: tuple[Function, ...],
    library_pairs: tuple[Example, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(corpus, "standard_library_functions", lambda: list(library_functions))
    monkeypatch.setattr(corpus, "standard_library_pairs", lambda: list(library_pairs))
    package = tmp_path / "some==1"
    package.mkdir()
    many = "".join(f'def f_{i}(x):\n    """Give thing number {i} back again."""\n    return x\n\n' for i in range(900))
    (package / "some.py").write_text(many, encoding="utf-8")
    monkeypatch.setattr(corpus, "fetch_packages", lambda *_: ([package], list(PACKAGES[1:])))

    examples = corpus.training_examples()

    assert f"packages: 1 of {len(PACKAGES)}, without " in capsys.readouterr().out
    rest, test = hold_out(list(library_pairs))
    validation = corpus.validation_pairs()
    assert len(validation) == 500 and not {e.query for e in validation} & {e.query for e in test}
    everyday = read_questions(corpus.EVERYDAY, library_functions)
    unseen = {text for pair in (*test, *validation) for text in (pair.query, pair.positive)}
    unseen.update(everyday.queries, (everyday.passages[row] for rows in everyday.relevant for row in rows))
    assert not unseen & {text for example in examples for text in (example.query, example.positive)}
    # A capped package, each function by its docstring and by its name, and most of the library likewise.
    of_package = [e for e in examples if "def f_" in e.positive and e.query.startswith(("Give thing", "f "))]
    assert len(of_package) == 2 * 600
    assert len(examples) > 1.5 * len(rest) and len(set(examples)) == len(examples)


def test_a_student_on_an_encoder_is_made_once(base_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"{verb} the {noun}" for verb in ("open", "close", "read") for noun in ("file", "socket", "lock")]
    monkeypatch.setattr(corpus, "training_examples", lambda: [Example(text, f"def f(): {text}") for text in texts])
    phase = Phase(2, lr=1e-3, batch_size=4)
    made = encoder.make(tmp_path, base_model, phase)
    monkeypatch.setattr(corpus, "training_examples", lambda: pytest.fail("read anew"))
    again = encoder.make(tmp_path, base_model, phase)
    assert again.fingerprint() == made.fingerprint()
    start, student = (D2LLM.from_pretrained(tmp_path / name) for name in ("start", "student"))
    assert not any(value.any() for name, value in start.named_parameters() if "lora_B" in name)
    assert any(value.any() for name, value in student.named_parameters() if "lora_B" in name)


def test_a_student_is_drawn_back_towards_its_start(base_model: str) -> None:
    student = D2LLM.create(base_model, lora_r=2, iem_hidden=8)
    start = {name: value.clone() for name, value in student.trainable_state().items()}
    for value in student.trainable_state().values():
        value.add_(1)
    adapted = student.backbone.get_submodule("layers.0.mlp.up_proj")
    whole = adapted.get_delta_weight("default").clone()
    encoder.draw_back(student, start, 0.25)
    torch.testing.assert_close(adapted.get_delta_weight("default"), 0.25 * whole)
    torch.testing.assert_close(student.iem.linear1.weight, start["iem.linear1.weight"] + 0.25)
