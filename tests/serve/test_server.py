"""Search, change, limits and safety of the server; and that it lives as a process."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import PASSAGES, TOKEN, Client, run
from typer.testing import CliRunner

from d2llm.cli import app
from d2llm.index import Index
from d2llm.index.writer import write_lock
from d2llm.serve import memory
from d2llm.serve.batching import Batcher
from d2llm.serve.limits import Limits
from d2llm.serve.refusal import Refusal
from d2llm.student import D2LLM

AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}


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
        with write_lock(served):
            busy = await session.post("/documents", json=new, headers=AUTHORIZED)
        added = await session.post("/documents", json=new, headers=AUTHORIZED)
        again = await session.post("/documents", json=new, headers=AUTHORIZED)
        found = await session.post("/search", json={"query": "graph dates", "k": 5}, headers=AUTHORIZED)
        gone = await session.delete("/documents/new/1", headers=AUTHORIZED)
        unknown = await session.delete("/documents/new/1", headers=AUTHORIZED)
        return refused, added, again, found, gone, unknown, busy

    assert run(client, read_only).status_code == 403
    answers = run(client, calls, writable=True, token=TOKEN)
    assert [answer.status_code for answer in answers] == [401, 200, 400, 200, 200, 400, 409]
    assert answers[-1].headers["retry-after"] == "1" and "another process" in answers[-1].json()["detail"]
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


def test_freed_memory_goes_back_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    trimmed: list[int] = []
    now = 0.0
    monkeypatch.setattr(memory, "time", SimpleNamespace(monotonic=lambda: now))
    library = SimpleNamespace(malloc_trim=trimmed.append)
    monkeypatch.setattr(memory, "ctypes", SimpleNamespace(CDLL=lambda _: library))
    trimming = memory.Trimming(every=10)
    counts = []
    for now in (9.0, 11.0, 12.0, 22.0):  # noqa: B007
        trimming()
        counts.append(len(trimmed))
    assert counts == ([0, 1, 1, 2] if sys.platform == "linux" else [0] * 4)


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
    "teacher",
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


@contextmanager
def running(student: D2LLM, index: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server as a process: its address, once it answers, and itself; asked to stop in the end."""
    folder = index.parent / "student"
    student.save_pretrained(folder)
    command = [sys.executable, "-m", "d2llm.cli", "serve", "--port", "0", "--index", str(index), "--model", str(folder)]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = re.search(r"http://\S+(?=,)", process.stdout.readline())
            assert url is not None
            assert _when_it_listens(f"{url.group()}/ready") == {"status": "ok"}
            yield url.group(), process
        finally:
            process.terminate()
            process.wait(60)
    # A server that stopped in order ends by the signal that asked it to.
    assert process.returncode in (0, -signal.SIGTERM)


def _ask_on(url: str, until: threading.Event, seen: list[list[str]]) -> None:
    """Search again and again: the ids of each answer, which must be one."""
    with httpx.Client(base_url=url, timeout=60) as session:
        while not until.is_set():
            answer = session.post("/search", json={"query": "open the file", "k": 50})
            answer.raise_for_status()
            seen.append(sorted(hit["id"] for hit in answer.json()["hits"]))


def test_it_lives_as_processes_that_take_up_new_generations_and_finish_before_they_stop(
    student: D2LLM, served: Path
) -> None:
    """Appends, deletions and a rebuild by another process than the server's, under searches that must not notice."""
    states = [sorted(name for name, _ in PASSAGES)]
    with running(student, served, "--workers", "2") as (url, process), ThreadPoolExecutor(12) as pool:
        until, seen = threading.Event(), [[] for _ in range(3)]
        asking = [pool.submit(_ask_on, url, until, each) for each in seen]
        index = Index.open(served, student)
        for change in (
            lambda: index.append([("new", "open a door")]),
            lambda: index.delete(["p0", "new"]),
            lambda: Index.build(student, [*PASSAGES[:2], ("last", "a file")], served, overwrite=True),
        ):
            change()
            states.append(sorted(Index.open(served).ids()))
            # Each client has asked since.
            counts = [len(each) for each in seen]
            while not all(len(each) > count + 1 for each, count in zip(seen, counts, strict=True)):
                assert not any(each.done() for each in asking)
                time.sleep(0.005)
        until.set()
        assert [each.result() for each in asking] == [None] * 3
        for each in seen:
            assert [ids for ids in states if ids in each][-1] == states[-1] and all(ids in states for ids in each)
        counted = httpx.get(f"{url}/metrics", timeout=60).text
        assert f'd2llm_requests_total{{path="/search",status="200"}} {sum(map(len, seen))}.0' in counted
        told = CliRunner().invoke(app, ["search", "open", "file", "-k", "2", "--url", url, "--json"])
        expected = Index.open(served, student).search("open file", 2)[0]
        assert [hit["id"] for hit in json.loads(told.stdout)] == [hit.id for hit in expected]
        refused = CliRunner().invoke(app, ["search", "open", "-k", "5000", "--url", url])
        assert refused.exit_code == 2 and "answered 413" in refused.stderr
        # A worker that dies is missed by nobody but those that it was answering.
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        first, _ = (each for each in children if "spawn_main" in Path(f"/proc/{each}/cmdline").read_text())
        os.kill(int(first), signal.SIGKILL)
        while Path(f"/proc/{first}/stat").exists() and " Z " not in Path(f"/proc/{first}/stat").read_text():
            time.sleep(0.001)
        assert [httpx.get(f"{url}/health", timeout=60).status_code for _ in range(3)] == [200] * 3
        # What was asked for before the signal is answered after it.
        body = {"query": "open", "documents": ["file " * 20] * 200}
        late = pool.submit(httpx.post, f"{url}/rerank", json=body, timeout=60)
        while "d2llm_waiting_texts 0.0" in httpx.get(f"{url}/metrics", timeout=60).text and not late.done():
            time.sleep(0.001)
        process.terminate()
        assert late.result().status_code == 200


def test_the_shipped_teacher_is_served(student: D2LLM, served: Path) -> None:
    with running(student, served, "--teacher", "shipped") as (url, _):
        body = {"query": "open the file", "k": 4, "teacher": True, "explain": True}
        found = httpx.post(f"{url}/search", json=body, timeout=60).json()["hits"]
    assert [hit["rank"] for hit in found] == [1, 2, 3, 4]
    assert sorted(hit["ranks"]["teacher"] for hit in found) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("options", "said"),
    (
        (["--model", "x", "--teacher", "y"], "--index"),
        (["--teacher", "absent"], "absent"),
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
