"""A teacher behind the server: it orders what was found anew, for those who ask, and holds up nobody else."""

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from serving import PASSAGES, Client, run

from d2llm.index import Index
from d2llm.last_stage import reorder
from d2llm.serve.limits import Limits
from d2llm.student import D2LLM

ASKED = {"query": "open the file", "k": 2, "mode": "cosine", "teacher": True}


class Likes:
    """Judges one passage far above the others, and waits until it is let."""

    def __init__(self, text: str) -> None:
        self.text, self.asked, self.go = text, threading.Semaphore(0), threading.Event()
        self.go.set()

    def header(self) -> dict[str, object]:
        return {}

    def judge(self, queries: Sequence[str], passages: Sequence[str], task: str) -> tuple[np.ndarray, None]:
        self.asked.release()
        assert self.go.wait(30)
        yes = np.array([99.0 * (passage == self.text) for passage in passages], np.float32)
        return np.stack([yes, np.zeros_like(yes)], axis=1), None


def test_it_orders_anew_what_it_may_bring_up_from_below(client: Client, student: D2LLM, served: Path) -> None:
    """The last of four, of which two are asked for, comes first or second where the teacher is asked."""
    by_search = Index.open(served, student).search(ASKED["query"], 4, mode="cosine")[0]
    judge = Likes(by_search[-1].text or "")

    async def calls(session: httpx.AsyncClient) -> Any:
        bodies = (ASKED, {**ASKED, "teacher": False}, {**ASKED, "explain": True})
        return [(await session.post("/search", json=body)).json()["hits"] for body in bodies]

    judged, plain, explained = run(client, calls, judge=judge)
    expected = reorder(judge, [ASKED["query"]], [by_search])[0]
    assert [hit["id"] for hit in judged] == [hit.id for hit in expected[:2]]
    assert [hit["id"] for hit in plain] == [hit.id for hit in by_search[:2]]
    assert by_search[-1].id in [hit["id"] for hit in judged] and [hit["rank"] for hit in judged] == [1, 2]
    assert {"search", "teacher"} <= explained[0]["ranks"].keys()


def test_who_does_not_ask_for_it_does_not_wait_and_too_many_are_refused(client: Client) -> None:
    judge = Likes(PASSAGES[0][1])
    judge.go.clear()

    async def calls(session: httpx.AsyncClient) -> Any:
        waiting = [asyncio.create_task(session.post("/search", json=ASKED)) for _ in range(2)]
        await asyncio.to_thread(judge.asked.acquire)
        plain = [await session.post("/search", json={"query": "open"}) for _ in range(20)]
        refused = await session.post("/search", json=ASKED)
        judge.go.set()
        return plain, refused, await asyncio.gather(*waiting)

    plain, refused, judged = run(client, calls, judge=judge, limits=Limits(judged=2))
    assert {answer.status_code for answer in (*plain, *judged)} == {200}
    assert refused.status_code == 429 and "searches with the teacher" in refused.json()["detail"]
    assert refused.headers["Retry-After"]


def test_a_server_without_one_says_so_at_once_and_shows_no_switch(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def calls(session: httpx.AsyncClient) -> Any:
        return await session.post("/search", json=ASKED), (await session.get("/info")).json(), await session.get("/")

    with monkeypatch.context() as patched:
        patched.setattr(Index, "search", lambda *_, **__: pytest.fail("searched for what is refused"))
        refused, info, page = run(client, calls)
    assert refused.status_code == 400 and "--teacher" in refused.json()["detail"]
    assert info["teacher"] is False and '<label id="judged" hidden>' in page.text
    _, info, page = run(client, calls, judge=Likes("x"))
    assert info["teacher"] is True and '<label id="judged">' in page.text
