"""What llama.cpp's own server is asked and answers, written down for tests to replay where there is no such server.

    python -m benchmarks.recorded_server tests/data/llama_server.json

Needs ``pip install xllamacpp``. The questions are the first of tests/data/everyday.jsonl, each with the name of the
function that answers it and with that of the next question. Of an answer all is kept but times, the path of the model
and what is drawn anew for every request.
"""

import argparse
import importlib.metadata
import itertools
import json
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from benchmarks.llama_server import serving
from d2llm.backbone import load_tokenizer, packaged_model
from d2llm.data.rows import json_rows
from d2llm.errors import InputError
from d2llm.files import atomic_path
from d2llm.shipped import BASE_MODEL
from d2llm.teacher.completions import Completions
from d2llm.teacher.endpoint import FORMS, EndpointTeacher

QUESTIONS = Path("tests/data/everyday.jsonl")
#: Pairs judged by prompts of token ids; the first of them by prompts of text too.
PAIRS, AS_TEXT = 24, 4
#: Likeliest tokens that are asked for: yes and no are among them for every one of these pairs.
TOP = 10
#: A token that the LLM does not have.
_UNKNOWN = 999_999
_KEPT = ("choices", "usage", "error")


class Forwarder(ThreadingHTTPServer):
    """Hands requests on to a server, and keeps each with the status and the answer that came."""

    def __init__(self, url: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = url
        self.exchanges: list[tuple[Any, int, dict[str, Any]]] = []

    @property
    def url(self) -> str:
        """Up to /v1."""
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: Forwarder

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers["Content-Length"]))
        url = self.server.target + self.path.removeprefix("/v1")
        try:
            request = urllib.request.Request(url, asked, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request) as answer:
                status, body = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, body = error.code, error.read()
        kept = {key: value for key, value in json.loads(body).items() if key in _KEPT}
        self.server.exchanges.append((json.loads(asked), status, kept))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""


@contextmanager
def forwarding(url: str) -> Iterator[Forwarder]:
    """A forwarder for the length of the block, in a thread."""
    with Forwarder(url) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def pairs(file: Path, count: int) -> tuple[list[str], list[str]]:
    """Queries and passages of ``count`` pairs, right and wrong ones in turn."""
    rows = [row for _, row in json_rows(file) if isinstance(row, dict)]
    chosen = [(row["question"], row["functions"][0], after["functions"][0]) for row, after in itertools.pairwise(rows)]
    queries = [question for question, _, _ in chosen for _ in range(2)]
    passages = [name for _, right, wrong in chosen for name in (right, wrong)]
    return queries[:count], passages[:count]


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    target = parser.parse_args().out
    queries, passages = pairs(QUESTIONS, PAIRS)
    tokenizer = load_tokenizer(BASE_MODEL)
    with (
        serving(packaged_model(BASE_MODEL.partition(":")[2])) as url,
        forwarding(url) as server,
        tempfile.TemporaryDirectory() as folder,
    ):
        completions = Completions(server.url, "smollm2", TOP)
        for form, count in zip(FORMS, (PAIRS, AS_TEXT), strict=True):
            judge = EndpointTeacher(completions, tokenizer, BASE_MODEL, Path(folder) / form, form=form, concurrency=1)
            judge.judge(queries[:count], passages[:count], "asym")
        try:
            completions.ask([_UNKNOWN])
        except InputError as error:
            print(error)
    with atomic_path(target) as path:
        head = {"server": f"xllamacpp {importlib.metadata.version('xllamacpp')}", "tokenizer": BASE_MODEL}
        head |= {"pairs": list(zip(queries, passages, strict=True))}
        lines = [f"{json.dumps(name)}: {json.dumps(value)},\n" for name, value in head.items()]
        exchanges = ",\n".join(map(json.dumps, server.exchanges))
        path.write_text(f'{{{"".join(lines)}"exchanges": [\n{exchanges}\n]}}\n', encoding="utf-8")
    print(f"{target}: {len(server.exchanges)} answers, {target.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
