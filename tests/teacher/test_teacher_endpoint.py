"""A teacher behind a completions endpoint, asked over HTTP."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from completions_server import Server, judged_by, serving
from typer.testing import CliRunner

from d2llm.backbone import load_causal_lm, load_tokenizer
from d2llm.cli import app
from d2llm.cli.endpoint import check_sample
from d2llm.data.example import Example
from d2llm.data.jsonl import write_examples
from d2llm.errors import D2LLMError, FormatError, InputError, MismatchError, MissingError
from d2llm.teacher.completions import Completions, read_completion
from d2llm.teacher.endpoint import EndpointTeacher
from d2llm.teacher.model import Teacher
from d2llm.teacher.scores import ScoreTable
from d2llm.teacher.scoring import collect, plan_groups, plan_pairs, score

QUERIES = [f"the file of socket {i % 3}" for i in range(8)]
PASSAGES = [f"a socket of the server {i}" for i in range(8)]
#: All of the tiny vocabulary.
ALL = 290


@pytest.fixture(scope="module")
def lm(tiny_lm: str) -> tuple[Any, Any]:
    return load_causal_lm(tiny_lm), load_tokenizer(tiny_lm)


def teacher_at(server: Server, tokenizer: Any, folder: Path, **options: Any) -> EndpointTeacher:
    asking = {"top": ALL, "retries": 0, "pause": lambda seconds: None}
    asking |= {name: options.pop(name) for name in ("top", "retries", "pause", "timeout", "token") if name in options}
    return EndpointTeacher(Completions(server.url, "tiny", **asking), tokenizer, "tiny", folder, **options)


def difference(logits: np.ndarray) -> np.ndarray:
    return logits[:, 0] - logits[:, 1]


@pytest.mark.parametrize(("form", "chat_form"), [("tokens", False), ("text", False), ("tokens", True)])
def test_logprobs_differ_as_the_raw_logits_do(
    lm: Any, shared_teacher: Teacher, tmp_path: Path, form: str, chat_form: bool
) -> None:
    expected, _ = shared_teacher.judge(QUERIES, PASSAGES, "asym")
    with serving(judged_by(*lm, chat_form)) as server:
        teacher = teacher_at(server, lm[1], tmp_path, form=form, token="a-token-of-16-chars")
        logits, features = teacher.judge(QUERIES, PASSAGES, "asym")
    assert features is None
    np.testing.assert_allclose(difference(logits), difference(expected), atol=1e-4)
    assert {question["authorization"] for question in server.asked} == {"Bearer a-token-of-16-chars"}
    sent = {question["path"] for question in server.asked}, {question["max_tokens"] for question in server.asked}
    assert sent == ({"/v1/completions"}, {1})


def test_as_many_requests_at_once_as_allowed(lm: Any, tmp_path: Path) -> None:
    # A round of four begins when four are there, so that fewer at once would break the barrier.
    together, inside, most = threading.Barrier(4, timeout=60), [], []

    def fault(number: int) -> None:
        inside.append(number)
        most.append(len(inside))
        together.wait()
        inside.remove(number)

    with serving(judged_by(*lm), fault=fault) as server:
        teacher_at(server, lm[1], tmp_path, concurrency=4).judge(QUERIES, PASSAGES, "asym")
    assert max(most) == 4 and len(server.asked) == 8


def test_a_busy_server_is_asked_again_after_longer_and_longer_pauses(lm: Any, tmp_path: Path) -> None:
    pauses: list[float] = []
    with serving(judged_by(*lm), fault=lambda number: (503, 429, 500)[number] if number < 3 else None) as server:
        teacher_at(server, lm[1], tmp_path, retries=3, pause=pauses.append).judge(QUERIES[:1], PASSAGES[:1], "asym")
        assert pauses == [0.5, 1.0, 2.0]
    with pytest.raises(MissingError, match=r"'the file of socket 0'.*'a socket of the server 0'.*no answer after 3"):
        teacher_at(server, lm[1], tmp_path / "other", retries=2).judge(QUERIES[:1], PASSAGES[:1], "asym")


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        (b"<html>", FormatError, "expected a completion of one token with logprobs, got '<html>'"),
        (b'{"choices": [{"logprobs": null}]}', FormatError, "expected a completion"),
        (b'{"choices": [{"logprobs": {"top_logprobs": [{" yes": 2.0}]}}]}', FormatError, "at most 0"),
        (
            b'{"choices": [{"logprobs": {"top_logprobs": [{" yes": -1.0, "a": -2}]}}]}',
            InputError,
            r"both answers \[' yes', ' no'\] among the 290 likeliest tokens, got \[' yes', 'a'\]",
        ),
    ],
)
def test_wrong_answers_are_named_with_their_pair(
    lm: Any, tmp_path: Path, body: bytes, error: type[D2LLMError], message: str
) -> None:
    named = pytest.raises(error, match=f"^endpoint: query 'the file of socket 0', .*{message}")
    with serving(judged_by(*lm), fault=lambda number: body) as server, named:
        teacher_at(server, lm[1], tmp_path).judge(QUERIES[:1], PASSAGES[:1], "asym")
    # It is no matter of another try.
    assert len(server.asked) == 1 and not list(tmp_path.iterdir())


def test_a_pair_that_stands_twice_is_asked_once(lm: Any, tmp_path: Path) -> None:
    with serving(judged_by(*lm)) as server:
        logits, _ = teacher_at(server, lm[1], tmp_path).judge(QUERIES[:1] * 3, PASSAGES[:1] * 3, "asym")
    assert len(server.asked) == 1 and (logits == logits[0]).all()


def test_a_damaged_journal_is_named(lm: Any, tmp_path: Path) -> None:
    with serving(judged_by(*lm)) as server:
        teacher = teacher_at(server, lm[1], tmp_path)
        teacher.judge(QUERIES[:2], PASSAGES[:2], "asym")
        journal = teacher.answers.file
        journal.write_text(journal.read_text().replace("[", "{", 1))
        with pytest.raises(FormatError, match=r"\.answers:1: not an answer of an endpoint"):
            teacher_at(server, lm[1], tmp_path)


def test_scores_of_another_engine_are_not_mixed(lm: Any, shared_teacher: Teacher, tmp_path: Path) -> None:
    work = list(plan_groups([Example(QUERIES[0], PASSAGES[0], (PASSAGES[1],))]))
    with serving(judged_by(*lm)) as server:
        teacher = teacher_at(server, lm[1], tmp_path)
        table = collect(score(teacher, work, tmp_path, show_progress=False))
    assert table.header["engine"] == "completions" and not list(table.relations())
    with pytest.raises(MismatchError, match="engine: made with 'completions', expected None"):
        table.check_same_teacher(shared_teacher.header())


def test_a_sample_to_check_may_be_less_than_there_are_parts(lm: Any, tiny_lm: str, tmp_path: Path) -> None:
    work = list(plan_pairs([*zip(QUERIES, PASSAGES, strict=True)], "asym", 4))
    with serving(judged_by(*lm)) as server:
        table = collect(score(teacher_at(server, lm[1], tmp_path), work, tmp_path, show_progress=False))
    assert check_sample(table, work, tiny_lm, None, 3).startswith("3 pairs judged in-process")


def test_tokens_may_go_by_their_ids() -> None:
    body = b'{"choices": [{"logprobs": {"top_logprobs": [{"token_id:12": -0.5, "x": -1}]}}]}'
    assert read_completion(body).top == {12: -0.5, "x": -1.0}


@pytest.mark.parametrize("wrong", [{"url": "localhost:8000"}, {"top": 1}, {"timeout": 0.0}, {"retries": -1}])
def test_wrong_settings_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="endpoint: expected"):
        Completions(**{"url": "http://127.0.0.1:1", "model": "m", **wrong})


def test_the_command_scores_by_an_endpoint_and_checks_a_sample(lm: Any, tiny_lm: str, tmp_path: Path) -> None:
    data, out = tmp_path / "train.jsonl", tmp_path / "scores.safetensors"
    write_examples(data, [Example(q, p, (PASSAGES[0] + "!",)) for q, p in zip(QUERIES, PASSAGES, strict=True)])
    with serving(judged_by(*lm)) as server:
        arguments = ["--endpoint", server.url, "--model", "tiny", "--tokenizer", tiny_lm, "--top-logprobs", str(ALL)]
        done = CliRunner().invoke(app, ["teach", "score", str(data), "--out", str(out), *arguments, "--check", "5"])
        assert done.exit_code == 0, done.output
        refused = CliRunner().invoke(
            app, ["teach", "score", str(data), "--out", str(out), *arguments, "--num-layers", "1"]
        )
    assert "5 pairs judged in-process" in done.output and "0.0000 on average" in done.output
    # Three queries, each with a negative of its own.
    assert len(ScoreTable.load(out)) == 11 == len(server.asked)
    assert refused.exit_code == 2 and "--adapter, --num-layers" in str(refused.output) + str(refused.exception)
