"""The page in a real browser, headless."""

import asyncio
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from urllib.parse import urlencode

import httpx
import pytest
import uvicorn
from serving import Client

from d2llm.index import Index
from d2llm.serve.app import create_app
from d2llm.serve.engine import Engine
from d2llm.serve.limits import Limits
from d2llm.student import D2LLM

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PASSAGES = [
    ("script", "open <script>document.title='broken'</script><b>bold</b>"),
    ("long", "open " + "word " * 4000),
    ("plain", "read the file"),
]

Show = Callable[..., str]


def test_the_page_may_run_no_script_but_its_own(client: Client) -> None:
    async def call() -> httpx.Response:
        async with client(token="0123456789abcdef") as session:
            return await session.get("/")

    answer = asyncio.run(call())
    policy = answer.headers["Content-Security-Policy"]
    assert answer.status_code == 200 and "default-src 'none'" in policy and "unsafe-inline" not in policy.split(";")[1]
    assert "http://" not in answer.text and "https://" not in answer.text


@pytest.fixture(scope="module")
def show(student: D2LLM, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Show]:
    """What a browser makes of the page, asked a question."""
    if BROWSER is None:
        pytest.skip("no Chromium here")
    folder = tmp_path_factory.mktemp("page")
    Index.build(student, PASSAGES, folder / "index")
    engine = Engine(student, folder / "index", "d2llm", Limits())
    config = uvicorn.Config(create_app(engine), port=0, log_level="warning")
    socket = config.bind_socket()
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([socket],))
    thread.start()
    port = socket.getsockname()[1]

    def dump(**asked: str) -> str:
        options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
        url = f"http://127.0.0.1:{port}/?{urlencode(asked)}"
        command = [BROWSER, *options, "--virtual-time-budget=8000", "--dump-dom", url]
        return subprocess.run(command, capture_output=True, text=True, timeout=120).stdout

    yield dump
    server.should_exit = True
    thread.join()


def test_a_search_is_shown_with_its_words_and_reasons(show: Show) -> None:
    page = show(q="open file", k="3")
    assert page.count("<li>") == 3 and "3 hits" in page
    for measure in ("BM25", "interaction module", "cosine"):
        assert re.search(rf"<dt>{measure}</dt><dd>-?[\d.]+(, rank \d+)?<div class=\"bar\">", page), measure
    assert "<mark>open</mark>" in page and "<mark>file</mark>" in page and "Why this hit" in page
    # What a passage holds is shown, and neither run nor taken for markup.
    assert "&lt;b&gt;bold&lt;/b&gt;" in page and "<title>d2llm search</title>" in page
    assert page.count("word word") > 0


def test_nothing_found_and_a_refusal_are_told(show: Show) -> None:
    assert "Nothing found." in show(q="zebra", mode="bm25")
    assert "expected at most 1000" in show(q="open", k="1001")
    assert "<li>" not in show()
    assert "the server has none; start it with --teacher" in show(q="open", teacher="on")
