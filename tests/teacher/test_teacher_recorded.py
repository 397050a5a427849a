"""A teacher behind llama.cpp's own server, whose answers were recorded (benchmarks/recorded_server.py), over HTTP."""

import json
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from completions_server import recorded, serving

from d2llm.backbone import load_tokenizer
from d2llm.errors import D2LLMError, FormatError, InputError, MismatchError, MissingError
from d2llm.files import read_json
from d2llm.teacher.completions import Completions
from d2llm.teacher.endpoint import EndpointTeacher
from d2llm.teacher.scoring import collect, plan_pairs, score
from tests.processes import started

RECORD = read_json(Path(__file__).parents[1] / "data" / "llama_server.json")
PAIRS, EXCHANGES = RECORD["pairs"], RECORD["exchanges"]
PROMPTS = [question["prompt"] for question, _, _ in EXCHANGES]
#: What the server calls both answers.
YES, NO = " yes", " no"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(RECORD["tokenizer"])


def teacher_at(url: str, tokenizer: Any, folder: Path, **options: Any) -> EndpointTeacher:
    asking = Completions(url, "smollm2", top=10, retries=0, timeout=options.pop("timeout", 60))
    return EndpointTeacher(asking, tokenizer, RECORD["tokenizer"], folder, **options)


def judge(teacher: EndpointTeacher, count: int) -> np.ndarray:
    """What the first pairs are given."""
    queries, passages = zip(*PAIRS[:count], strict=True)
    return teacher.judge(queries, passages, "asym")[0]


def told(exchange: list[Any]) -> list[float]:
    """[yes, no] of a recorded answer, by the names that the server gave."""
    listed = exchange[2]["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    return [next(each["logprob"] for each in listed if each["token"] == name) for name in (YES, NO)]


@pytest.mark.parametrize(("form", "first", "count"), [("tokens", 0, len(PAIRS)), ("text", len(PAIRS), 4)])
def test_scores_are_those_recorded(tokenizer: Any, tmp_path: Path, form: str, first: int, count: int) -> None:
    with serving(recorded(EXCHANGES)) as server:
        found = judge(teacher_at(server.url, tokenizer, tmp_path, form=form), count)
    assert len(server.asked) == count
    np.testing.assert_array_equal(found, np.float32([told(each) for each in EXCHANGES[first : first + count]]))


def score_all(url: str, folder: Path) -> None:
    """In a process of its own."""
    teacher = teacher_at(url, load_tokenizer(RECORD["tokenizer"]), folder, concurrency=1)
    score(teacher, list(plan_pairs(PAIRS, "asym", 4)), folder, show_progress=False)


def test_a_killed_process_costs_the_request_under_way(tokenizer: Any, tmp_path: Path) -> None:
    reached, killed = threading.Event(), threading.Event()
    work = list(plan_pairs(PAIRS, "asym", 4))

    def fault(number: int) -> None:
        if number == 10:
            reached.set()
            killed.wait()

    with serving(recorded(EXCHANGES), fault=fault) as server:
        process = started(score_all, server.url, tmp_path)
        while not reached.wait(0.1):
            assert process.is_alive()
        process.kill()
        process.join()
        killed.set()
        assert process.exitcode == -signal.SIGKILL
        shards = {file: file.stat().st_mtime_ns for file in tmp_path.glob("*.safetensors")}
        assert len(shards) == 2
        (journal,) = tmp_path.glob("*.answers")
        # As one that is killed while it writes would leave it.
        whole = journal.read_bytes()
        journal.write_bytes(whole + b'["asym", "0123')
        # Another process reads what the first was told.
        files = score(teacher_at(server.url, tokenizer, tmp_path, shard=1), work, tmp_path, show_progress=False)
        judge(teacher_at(server.url, tokenizer, tmp_path), len(PAIRS))
        assert journal.read_bytes() == whole
    asked = [question["prompt"] for question in server.asked]
    assert sorted(asked) == sorted([*PROMPTS[: len(PAIRS)], PROMPTS[10]])
    assert {file: file.stat().st_mtime_ns for file in shards} == shards
    # Scores go by the texts.
    found = dict(collect(files).items())
    assert sorted(found.values()) == sorted(tuple(np.float32(told(each)).tolist()) for each in EXCHANGES[: len(PAIRS)])


def test_a_late_answer_counts_as_none(tokenizer: Any, tmp_path: Path) -> None:
    released = threading.Event()

    def fault(number: int) -> None:
        if number == 2:
            released.wait()

    with serving(recorded(EXCHANGES), fault=fault) as server:
        with pytest.raises(MissingError, match=r"no answer after 1 attempts, the last one .*timed out"):
            judge(teacher_at(server.url, tokenizer, tmp_path, concurrency=1, timeout=0.5), 4)
        released.set()
        judge(teacher_at(server.url, tokenizer, tmp_path), 4)
    prompts = [question["prompt"] for question in server.asked]
    assert len(prompts) == 5 and prompts.count(prompts[2]) == 2 and all(prompt in prompts for prompt in PROMPTS[:4])


def cut(body: str) -> str:
    return body[: len(body) // 2]


def renamed(body: str) -> str:
    return body.replace(f'"token": "{YES}"', '"token": " maybe"')


def recounted(body: str) -> str:
    counted = json.loads(body)["usage"]["prompt_tokens"]
    return body.replace(f'"prompt_tokens": {counted},', f'"prompt_tokens": {counted + 1},')


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (cut, FormatError, "expected a completion of one token with logprobs, got"),
        (renamed, MismatchError, r"expected token \d+ to be ' yes', the server calls it ' maybe': it has another"),
        (recounted, MismatchError, r"tokens of the prompt, the server counts \d+: it has another tokenizer"),
    ],
)
def test_wrong_answers_are_named_with_their_pair(
    tokenizer: Any, tmp_path: Path, change: Callable[[str], str], error: type[D2LLMError], message: str
) -> None:
    body = change(json.dumps(EXCHANGES[0][2])).encode()
    named = pytest.raises(error, match=rf"^endpoint: query '{PAIRS[0][0]}', passage '{PAIRS[0][1]}': .*{message}")
    with serving(recorded(EXCHANGES), fault=lambda number: body) as server, named:
        judge(teacher_at(server.url, tokenizer, tmp_path), 1)
    # It is no matter of another try.
    assert len(server.asked) == 1 and not list(tmp_path.iterdir())


def test_what_the_server_refuses_is_told() -> None:
    with serving(recorded(EXCHANGES)) as server, pytest.raises(InputError, match="400: .*Prompt contains invalid tok"):
        Completions(server.url, "smollm2", top=10, retries=3).ask(EXCHANGES[-1][0]["prompt"])
    assert len(server.asked) == 1
