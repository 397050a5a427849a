"""Prompts of one query are judged as if each were read from its beginning, and their beginning is read once."""

from pathlib import Path

import numpy as np
import pytest
import torch
from teacher_models import save_model

from d2llm.teacher.model import Teacher
from d2llm.teacher.reader import PromptReader

QUERIES = ["read the file", "close a socket of the server and of another one", "no", "the file"]
PASSAGES = ["def read(): " + "pass " * 30, "x", "socket.close()", "answer", "the server answers"]


def pairs() -> tuple[list[str], list[str]]:
    """Every query with every passage, the last query with one, in an order where queries take turns."""
    every = [(query, passage) for passage in PASSAGES for query in QUERIES[:3]] + [(QUERIES[3], PASSAGES[0])]
    queries, passages = zip(*every, strict=True)
    return list(queries), list(passages)


def judged_apart(teacher: Teacher) -> tuple[np.ndarray, np.ndarray]:
    """Each pair by itself."""
    found = [teacher.judge([query], [passage], "asym") for query, passage in zip(*pairs(), strict=True)]
    logits, features = zip(*found, strict=True)
    return np.concatenate(logits), np.concatenate(features)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("batch_tokens", [40, 200, None])
def test_shared_beginnings_change_no_judgement(shared_teacher: Teacher, batch_tokens: int | None) -> None:
    together = shared_teacher.judge(*pairs(), "asym", batch_tokens=batch_tokens)
    for found, expected in zip(together, judged_apart(shared_teacher), strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize(
    ("kind", "settings", "shares"),
    [
        ("gpt2", {"n_positions": 512}, True),
        ("cohere", {}, True),
        ("granite", {"logits_scaling": 8.0}, True),
        ("gemma2", {"query_pre_attn_scalar": 8, "head_dim": 8, "sliding_window": 16}, False),
        ("mistral", {"sliding_window": 16}, False),
        ("mistral", {"sliding_window": None}, True),
    ],
)
def test_other_architectures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, settings: dict, shares: bool
) -> None:
    teacher = Teacher.from_pretrained(save_model(tmp_path, kind, initializer_range=0.3, **settings))
    expected = judged_apart(teacher)[0]
    read = tokens_read(monkeypatch)
    np.testing.assert_allclose(teacher.judge(*pairs(), "asym")[0], expected, atol=5e-5, rtol=1e-4)
    prompts = teacher.builder("asym").build(*pairs())
    assert (sum(read) < 0.9 * sum(map(len, prompts))) == shares


def test_bfloat16_judges_as_a_prompt_by_itself_does(tiny_lm: str) -> None:
    teacher = Teacher.from_pretrained(tiny_lm, dtype=torch.bfloat16)
    together, apart = teacher.judge(*pairs(), "asym")[0], judged_apart(teacher)[0]
    np.testing.assert_allclose(together, apart, atol=0.02 * np.abs(apart).max())


def test_queries_that_stand_alone_are_read_as_they_are(
    shared_teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = tokens_read(monkeypatch)
    shared_teacher.judge(QUERIES, PASSAGES[:4], "asym")
    assert sum(read) == sum(map(len, shared_teacher.builder("asym").build(QUERIES, PASSAGES[:4])))


def tokens_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of each call of a model from here on, without padding."""
    read, run = [], PromptReader._run

    def counted(self: PromptReader, inputs: dict, cache: object) -> object:
        width = inputs["input_ids"].shape[1]
        read.append(int(inputs["attention_mask"][:, -width:].sum()))
        return run(self, inputs, cache)

    monkeypatch.setattr(PromptReader, "_run", counted)
    return read
