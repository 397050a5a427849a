"""A completions endpoint that runs a tiny LLM, or misbehaves as a test asks."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

#: What a server does with a request in place of an answer: an HTTP status, a body, or None to answer.
Fault = Callable[[int], int | bytes | None]


class Server(ThreadingHTTPServer):
    """Answers ``POST /v1/completions`` by a causal LM; requests are counted and kept."""

    daemon_threads = True

    def __init__(self, lm: Any, tokenizer: Any, fault: Fault = lambda number: None, chat_form: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.lm, self.tokenizer, self.fault, self.chat_form = lm, tokenizer, fault, chat_form
        self.asked: list[dict[str, Any]] = []
        self.answered: list[Any] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        """Up to /v1."""
        return f"http://127.0.0.1:{self.server_port}/v1"

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        """What OpenAI's completions give for one token."""
        prompt = question["prompt"]
        ids = self.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt
        with torch.inference_mode(), self.lock:
            logprobs = self.lm(torch.tensor([ids])).logits[0, -1].float().log_softmax(0)
            self.answered.append(prompt)
        values, tokens = (each.tolist() for each in logprobs.topk(question["logprobs"]))
        names = [self.tokenizer.decode([token]) for token in tokens]
        if self.chat_form:
            top = [{"id": t, "token": n, "logprob": v} for t, n, v in zip(tokens, names, values, strict=True)]
            listed: dict[str, Any] = {"content": [{**top[0], "top_logprobs": top}]}
        else:
            # Where two tokens read alike the likelier one is told, as servers do.
            listed = {"top_logprobs": [dict(reversed(list(zip(names, values, strict=True))))]}
        return {"choices": [{"text": names[0], "logprobs": listed}], "usage": {"prompt_tokens": len(ids)}}


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            number = len(self.server.asked)
            self.server.asked.append({**question, "path": self.path, "authorization": self.headers["Authorization"]})
        fault = self.server.fault(number)
        status, body = (fault, b"busy") if isinstance(fault, int) else (200, fault)
        if body is None:
            body = json.dumps(self.server.answer(question)).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except OSError:
            # The client has gone.
            pass

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""


@contextmanager
def serving(*arguments: Any, **options: Any) -> Iterator[Server]:
    """A server for the length of the block, in a thread."""
    with Server(*arguments, **options) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
