"""Search, change, limits and safety of the server; and that it lives as a process."""

import asyncio
import json
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import PASSAGES, TOKEN, Client
from typer.testing import CliRunner

from d2llm.cli import app
from d2llm.index import Index
from d2llm.serve.batching import Batcher
from d2llm.serve.limits import Limits
from d2llm.serve.refusal import Refusal
from d2llm.student import D2LLM

AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}


def run(client: Client, calls: Any, **options: Any) -> Any:
    async def inside() -> Any:
        async with client(**options) as session:
            return await calls(session)

    return asyncio.run(inside())


def test_a_search_is_the_index_s(client: Client, student: D2LLM, served: Path) -> None:
    async def calls(session: httpx.AsyncClient) -> Any:
        return (await session.post("/search", json={"query": "open the file", "k": 3})).json()

    found = run(client, calls)["hits"]
    expected = Index.open(served, student).search("open the file", 3)[0]
    assert [(hit["id"], hit["text"]) for hit in found] == [(hit.id, hit.text) for hit in expected]
    np.testing.assert_allclose([hit["score"] for hit in found], [hit.score for hit in expected], rtol=1e-4, atol=1e-5)


def test_a_search_is_filtered_by_metadata(client: Client, served: Path) -> None:
    new = [{"id": "n", "text": "a graph", "metadata": {"year": 2020}}, {"id": "m", "text": "a graph of dates"}]

    async def calls(session: httpx.AsyncClient) -> Any:
        bodies = [
            {"query": "graph", "filters": filters} for filters in ({"year": {"gte": 2020}}, {"lang": "en"}, {}, 3)
        ]
        added = await session.post("/documents", json=new, headers=AUTHORIZED)
        return added, *[await session.post("/search", json=body, headers=AUTHORIZED) for body in bodies]

    added, found, unknown, empty, other = run(client, calls, writable=True, token=TOKEN)
    assert [(hit["id"], hit["metadata"]) for hit in found.json()["hits"]] == [("n", {"year": 2020})], added.text
    assert (unknown.status_code, empty.status_code, other.status_code) == (400, 400, 422)
    assert "filters: lang: unknown field" in unknown.json()["detail"]


def test_without_an_index_there_is_no_search(client: Client) -> None:
    async def calls(session: httpx.AsyncClient) -> Any:
        return await session.post("/search", json={"query": "open"}), (await session.get("/info")).json()

    answer, info = run(client, calls, index=False)
    assert answer.status_code == 404 and "--index" in answer.json()["detail"] and info["passages"] is None


def test_a_change_needs_leave_and_a_token_and_is_seen_at_once(client: Client, served: Path) -> None:
    new = [{"id": "new/1", "text": "a graph of dates"}]

    async def read_only(session: httpx.AsyncClient) -> Any:
        return await session.post("/documents", json=new)

    async def calls(session: httpx.AsyncClient) -> Any:
        refused = await session.post("/documents", json=new)
        added = await session.post("/documents", json=new, headers=AUTHORIZED)
        again = await session.post("/documents", json=new, headers=AUTHORIZED)
        found = await session.post("/search", json={"query": "graph dates", "k": 5}, headers=AUTHORIZED)
        gone = await session.delete("/documents/new/1", headers=AUTHORIZED)
        unknown = await session.delete("/documents/new/1", headers=AUTHORIZED)
        return refused, added, again, found, gone, unknown

    assert run(client, read_only).status_code == 403
    answers = run(client, calls, writable=True, token=TOKEN)
    assert [answer.status_code for answer in answers] == [401, 200, 400, 200, 200, 400]
    assert answers[1].json() == {"added": 1, "passages": len(PASSAGES) + 1}
    assert "new/1" in [hit["id"] for hit in answers[3].json()["hits"]]


@pytest.mark.parametrize("header", ({}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}))
def test_a_token_is_asked_for(client: Client, header: dict[str, str]) -> None:
    async def calls(session: httpx.AsyncClient) -> Any:
        paths = ("/v1/models", "/info", "/metrics", "/openapi.json", "/health")
        return [await session.get(path, headers=header) for path in paths]

    *closed, health = run(client, calls, token=TOKEN)
    assert {answer.status_code for answer in closed} == {401} and health.status_code == 200
    assert closed[0].headers["WWW-Authenticate"] == "Bearer" and closed[0].json()["error"]["code"] == "invalid_api_key"


def test_other_sites_cannot_call_it_by_their_name(client: Client) -> None:
    async def calls(session: httpx.AsyncClient) -> Any:
        return await session.get("/health", headers={"Host": "evil.example"})

    assert run(client, calls, hosts=["localhost"]).status_code == 400


@pytest.mark.parametrize(
    ("limits", "body", "status"),
    (
        (Limits(body=100), {"query": "x " * 100}, 413),
        (Limits(characters=10), {"query": "open the file"}, 413),
        (Limits(hits=5), {"query": "open", "k": 6}, 413),
        (Limits(searches=0), {"query": "open"}, 429),
        (Limits(seconds=0.0), {"query": "open"}, 408),
    ),
)
def test_limits_are_told(client: Client, limits: Limits, body: Any, status: int) -> None:
    async def calls(session: httpx.AsyncClient) -> Any:
        return await session.post("/search", json=body)

    answer = run(client, calls, limits=limits)
    assert answer.status_code == status and answer.json()["detail"]
    assert ("Retry-After" in answer.headers) == (status == 429)


def test_requests_share_a_batch_and_too_many_are_refused() -> None:
    batches, go = [], threading.Event()

    def encode(texts: list[str], kind: str) -> np.ndarray:
        batches.append((texts, kind))
        go.wait(10)
        return np.array([[float(text)] for text in texts], np.float32)

    batcher = Batcher(encode, Limits(waiting=5, gather=0.05))
    first = batcher.submit(["0"], "query")
    while not batches:
        time.sleep(0.001)
    rest = [batcher.submit([str(i)], ("query", "passage")[i % 2]) for i in range(1, 5)]
    with pytest.raises(Refusal) as refused:
        batcher.submit(["5"], "query")
    assert refused.value.status == 429 and refused.value.headers["Retry-After"]
    rest[0].cancel()
    go.set()
    assert [each.result(10).item() for each in (first, *rest[1:])] == [0, 2, 3, 4]
    batcher.close()
    assert batches == [(["0"], "query"), (["3"], "passage"), (["2", "4"], "query")] and batcher.waiting == 0
    with pytest.raises(Refusal):
        batcher.submit(["6"], "query")


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
_NAMES = (
    "input",
    "model",
    "dimensions",
    "query",
    "documents",
    "texts",
    "top_n",
    "task",
    "text_1",
    "k",
    "mode",
    "filters",
)
_BODIES = st.dictionaries(st.sampled_from(_NAMES), _VALUES, max_size=6) | _VALUES
_PATHS = ("/v1/embeddings", "/rerank", "/v2/rerank", "/score", "/search", "/documents")


@pytest.fixture(scope="module")
def fuzzed(student: D2LLM, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from d2llm.serve.app import create_app
    from d2llm.serve.engine import Engine

    path = tmp_path_factory.mktemp("fuzz") / "index"
    Index.build(student, PASSAGES, path)
    engine = Engine(student, path, "d2llm", Limits())
    yield create_app(engine)
    engine.close()


@settings(max_examples=60, deadline=None)
@given(
    path=st.sampled_from(("/v1/embeddings", "/rerank", "/v2/rerank", "/score", "/search", "/documents")), body=_BODIES
)
def test_no_body_makes_it_fail(fuzzed: Any, path: str, body: Any) -> None:
    async def call() -> httpx.Response:
        transport = httpx.ASGITransport(fuzzed, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as session:
            content = json.dumps(body).encode()
            return await session.post(path, content=content, headers={"Content-Type": "application/json"})

    answer = asyncio.run(call())
    assert answer.status_code < 500, answer.text
    assert "Traceback" not in answer.text


def _when_it_listens(url: str) -> Any:
    for _ in range(1000):
        try:
            with urllib.request.urlopen(url, timeout=60) as answer:
                return json.load(answer)
        except urllib.error.URLError:
            time.sleep(0.02)
    raise AssertionError("it never listened")


def test_it_lives_as_a_process(student: D2LLM, served: Path, tmp_path: Path) -> None:
    student.save_pretrained(tmp_path / "student")
    command = [sys.executable, "-m", "d2llm.cli", "serve", "--port", "0"]
    command += ["--index", str(served), "--model", str(tmp_path / "student")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = re.search(r"http://\S+(?=,)", process.stdout.readline())
            assert url is not None
            assert _when_it_listens(f"{url.group()}/ready") == {"status": "ok"}
            told = CliRunner().invoke(app, ["search", "open", "file", "-k", "2", "--url", url.group(), "--json"])
            expected = Index.open(served, student).search("open file", 2)[0]
            assert [hit["id"] for hit in json.loads(told.stdout)] == [hit.id for hit in expected]
            refused = CliRunner().invoke(app, ["search", "open", "-k", "5000", "--url", url.group()])
            assert refused.exit_code == 2 and "answered 413" in refused.stderr
        finally:
            process.terminate()
        # A server that stopped in order ends by the signal that asked it to.
        assert process.wait(60) in (0, -signal.SIGTERM)


@pytest.mark.parametrize(
    ("options", "said"),
    (
        (["--host", "0.0.0.0"], "--token-file"),
        (["--writable"], "--token-file"),
        (["--index", "x"], "--model"),
        (["--token-file", "absent"], "not found"),
    ),
)
def test_what_is_not_safe_is_refused(options: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["serve", *options])
    assert result.exit_code == 2 and said in result.output + (result.stderr or "")


def test_a_server_that_is_not_there_is_named() -> None:
    result = CliRunner().invoke(app, ["search", "open", "--url", "http://127.0.0.1:9"])
    assert result.exit_code == 2 and "d2llm serve" in result.stderr
    result = CliRunner().invoke(app, ["search", "open", "--url", "file:///etc/passwd"])
    assert result.exit_code == 2 and "expected http://" in result.stderr
