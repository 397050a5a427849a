"""Labels by a teacher for queries that have none."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from d2llm.bm25 import tokenize
from d2llm.cli import app
from d2llm.data.example import Example, text_id
from d2llm.data.jsonl import read_examples, write_examples
from d2llm.errors import InputError
from d2llm.evaluation.scorers import Scorer, Vectors
from d2llm.teacher.calibration import Labelled
from d2llm.teacher.joint import StudentJudge, joint
from d2llm.teacher.labelling import Cuts, find_candidates
from d2llm.teacher.scores import ScoreTable
from d2llm_kernels import IEM

VERBS, NOUNS = ("open", "close", "read", "send", "bind"), ("file", "socket", "folder", "thread")
PASSAGES = [f"def {verb}_{noun}(x): {verb} the {noun}" for verb in VERBS for noun in NOUNS]
QUERIES = [f"how to {verb} a {noun}" for verb in VERBS for noun in NOUNS]


class Words:
    """A teacher that counts the words of the query that the passage has."""

    def __init__(self) -> None:
        self.judged = 0

    def header(self) -> dict[str, Any]:
        return {"model": "words"}

    def judge(self, queries: Sequence[str], passages: Sequence[str], task: str) -> tuple[np.ndarray, None]:
        self.judged += len(queries)
        shared = [len(set(tokenize(q)) & set(tokenize(p))) for q, p in zip(queries, passages, strict=True)]
        return np.stack([np.array(shared, np.float32), np.zeros(len(shared), np.float32)], axis=1), None


@pytest.fixture
def teacher(monkeypatch: pytest.MonkeyPatch) -> Words:
    made = Words()
    monkeypatch.setattr("d2llm.cli.label.load_teacher", lambda *arguments: made)
    return made


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Arguments: fourteen queries to label, the corpus, six labelled queries."""
    (tmp_path / "queries.txt").write_text("\n".join(QUERIES[:14]))
    (tmp_path / "corpus.txt").write_text("\n".join(PASSAGES))
    write_examples(tmp_path / "few.jsonl", [Example(q, p) for q, p in zip(QUERIES[14:], PASSAGES[14:], strict=True)])
    out = ["--out", str(tmp_path / "train.jsonl"), "--labelled", str(tmp_path / "few.jsonl")]
    return ["teach", "label", str(tmp_path / "queries.txt"), str(tmp_path / "corpus.txt"), *out]


def test_hidden_labels_are_found_again_and_nothing_is_judged_twice(
    teacher: Words, files: list[str], tmp_path: Path
) -> None:
    done = CliRunner().invoke(app, [*files, "--candidates", "5"])
    assert done.exit_code == 0, done.output
    examples = read_examples(tmp_path / "train.jsonl")
    assert {(e.query, e.positive) for e in examples} == set(zip(QUERIES[:14], PASSAGES[:14], strict=True))
    assert all(len(e.negatives) == 4 and e.scores == ((2.0, 0.0), *[(1.0, 0.0)] * 4) for e in examples)
    assert "14 of 14 found a positive" in done.output and "100 judged" not in done.output
    assert "70 judged: 14 positives, 56 negatives, 0 between" in done.output
    assert teacher.judged == 100
    assert CliRunner().invoke(app, [*files, "--candidates", "5", "--negatives", "2"]).exit_code == 0
    assert teacher.judged == 100 and len(read_examples(tmp_path / "train.jsonl")[0].negatives) == 2


def test_where_nothing_is_sure_nothing_is_written(teacher: Words, files: list[str], tmp_path: Path) -> None:
    done = CliRunner().invoke(app, [*files, "--candidates", "5", "--positive", "1"])
    assert done.exit_code == 2 and "--positive: expected a candidate with a probability of at least 1.0" in done.stderr
    assert "0 of 14 found a positive" in done.output and not (tmp_path / "train.jsonl").exists()


def test_candidates_come_in_turn_and_are_no_query() -> None:
    queries = ["open the file", PASSAGES[0]]
    last_first = Scorer("last", lambda some, _: np.tile(np.arange(len(PASSAGES), dtype=np.float32), (2, 1))[some])
    found = find_candidates(queries, PASSAGES, 3, [last_first])
    assert found[0][:2] == [PASSAGES[0], PASSAGES[-1]] and len(set(found[0])) == 3
    assert PASSAGES[0] not in found[1] and PASSAGES[-1] in found[1] and len(set(found[1])) == 3
    assert find_candidates(["unheard"], PASSAGES, 3) == [[]]
    with pytest.raises(InputError, match="candidates: expected at least 1, got 0"):
        find_candidates(["q"], PASSAGES, 0)
    with pytest.raises(InputError, match="0 <= negative < positive <= 1, got 0.5 and 0.5"):
        Cuts(0.5, 0.5)


def test_a_student_leads_by_what_it_puts_a_candidate_above_the_best_other() -> None:
    iem, vectors = IEM(8), Vectors(torch.randn(2, 8), torch.randn(len(PASSAGES), 8))
    judge = StudentJudge(iem, vectors, QUERIES[:2], PASSAGES, "asym")
    leads = judge.leads([PASSAGES[3:7], PASSAGES[:1]])
    scores = judge.scorer.rows(slice(0, 1), {})[0, 3:7]
    expected = [score - max(np.delete(scores, place)) for place, score in enumerate(scores)]
    found = [leads[text_id(QUERIES[0]), text_id(text)] for text in PASSAGES[3:7]]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert leads[text_id(QUERIES[1]), text_id(PASSAGES[0])] == 0 and len(leads) == 5


def test_teacher_and_student_together_part_what_neither_does() -> None:
    """Labels say whether the sum of two numbers is above 0, of which each judge knows one."""
    known = np.random.default_rng(0).standard_normal((200, 2))
    pairs = [(text_id(f"query {row}"), text_id(f"passage {row}")) for row in range(len(known))]
    examples = [
        Example(f"query {row}", *(("right", (f"passage {row}",)) if sum(two) < 0 else (f"passage {row}", ("wrong",))))
        for row, two in enumerate(known)
    ]
    table = ScoreTable({"model": "words"}, {pair: (one, 0.0) for pair, (one, _) in zip(pairs, known, strict=True)})
    leads = {pair: float(two) for pair, (_, two) in zip(pairs, known, strict=True)}
    found = Labelled.of(examples, joint(table, leads, examples))
    assert found.odds[found.relevant].min() > found.odds[~found.relevant].max()
    alone = Labelled.of(examples, table)
    assert alone.odds[alone.relevant].min() < alone.odds[~alone.relevant].max()
