"""Temperature and threshold of a teacher, fitted on labelled pairs and kept by its file of scores."""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from d2llm.cli import app
from d2llm.data.example import Example, text_id
from d2llm.data.jsonl import write_examples
from d2llm.errors import InputError
from d2llm.teacher.calibration import Calibrated, Calibration, Labelled, Reliability
from d2llm.teacher.scores import ScoreTable

#: What made the labels below.
TRUE = Calibration(temperature=2.5, threshold=1.5)


def drawn(count: int, seed: int = 0) -> Labelled:
    """Pairs whose labels are drawn by probabilities of ``TRUE``."""
    draw = np.random.default_rng(seed)
    odds = draw.normal(0, 4, count)
    return Labelled(odds, draw.random(count) < TRUE.probability(odds), [f"q{i % (count // 4)}" for i in range(count)])


def test_both_numbers_are_found_again() -> None:
    found = Calibrated.of(drawn(8000))
    assert found.calibration.temperature == pytest.approx(TRUE.temperature, rel=0.06)
    assert found.calibration.threshold == pytest.approx(TRUE.threshold, abs=0.15)
    assert found.after.error < 0.03 < 0.1 < found.before.error
    assert found.after.counts.sum() == found.pairs == 8000
    assert "expected calibration error" in str(found)


def test_the_error_is_the_mean_distance_of_tenths() -> None:
    found = Reliability.of(np.array([0.05, 0.05, 0.95, 1.0]), np.array([False, True, True, True]))
    assert found.counts.tolist() == [2, 0, 0, 0, 0, 0, 0, 0, 0, 2]
    assert found.error == pytest.approx((2 * 0.45 + 2 * 0.025) / 4)


def test_labels_that_are_parted_without_a_fault_keep_numbers_finite() -> None:
    odds = np.concatenate([np.full(20, 3.0), np.full(20, -1.0)])
    found = Calibration.fit(Labelled(odds, odds > 0, ["q"] * 40))
    assert found.threshold == pytest.approx(1.0, abs=0.05)
    # Platt's smoothed labels, met exactly.
    assert found.probability(np.array([3.0])) == pytest.approx(21 / 22, abs=1e-3)


def test_what_cannot_be_fitted_is_refused() -> None:
    few = drawn(40)
    with pytest.raises(InputError, match="at least 5 relevant and 5 others that the teacher judged, got 0 and"):
        Calibrated.of(few.part(~few.relevant))
    with pytest.raises(InputError, match="the teacher judges against the labels"):
        Calibration.fit(Labelled(-drawn(400).odds, drawn(400).relevant, drawn(400).queries))
    with pytest.raises(InputError, match="expected pairs that the scores hold, got none among 1"):
        Labelled.of([Example("q", "p")], ScoreTable({}))


def test_the_command_keeps_them_in_the_header(tmp_path: Path) -> None:
    pairs = drawn(400)
    examples, logits = [], {}
    for i in range(100):
        texts = [f"passage {i} {k}" for k in range(4)]
        rows = sorted(range(i, 400, 100), key=lambda row: not pairs.relevant[row])
        logits |= {(text_id(f"query {i}"), text_id(t)): (pairs.odds[r], 0.0) for r, t in zip(rows, texts, strict=True)}
        examples.append(Example(f"query {i}", texts[0], tuple(texts[1:])))
    data, scores = tmp_path / "labelled.jsonl", tmp_path / "scores.safetensors"
    write_examples(data, examples)
    ScoreTable({"model": "m"}, logits).save(scores, "float16")
    done = CliRunner().invoke(app, ["teach", "calibrate", str(scores), str(data)])
    assert done.exit_code == 0, done.output
    table = ScoreTable.load(scores)
    kept = table.header["calibration"]
    assert kept["pairs"] == 400 and kept["relevant"] == 100 and kept["error"] < kept["error_before"]
    assert f"data.teacher_temperature={kept['temperature']:.3f}" in done.output
    # Scores of the same teacher may still be mixed.
    table.check_same_teacher({"model": "m"})
    assert table.header["dtype"] == "float16" and len(table) == 400
