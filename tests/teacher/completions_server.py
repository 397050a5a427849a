"""A completions endpoint that runs a tiny LLM, repeats what a real one said, or misbehaves as a test asks."""

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

#: The status and the body that a question is answered with.
Answer = Callable[[dict[str, Any]], tuple[int, dict[str, Any]]]
#: What a server does with a request in place of an answer: an HTTP status, a body, or None to answer.
Fault = Callable[[int], int | bytes | None]


class Server(ThreadingHTTPServer):
    """Answers ``POST /v1/completions``; requests are counted and kept."""

    daemon_threads = True
    # As many connections as come at once wait to be taken; five would, and some of two dozen be reset.
    request_queue_size = 128

    def __init__(self, answer: Answer, fault: Fault = lambda number: None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer, self.fault = answer, fault
        self.asked: list[dict[str, Any]] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        """Up to /v1."""
        return f"http://127.0.0.1:{self.server_port}/v1"


def judged_by(lm: Any, tokenizer: Any, chat_form: bool = False) -> Answer:
    """What OpenAI's completions give for one token of a causal LM."""

    def answer(question: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        prompt = question["prompt"]
        ids = tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt
        with torch.inference_mode():
            logprobs = lm(torch.tensor([ids])).logits[0, -1].float().log_softmax(0)
        values, tokens = (each.tolist() for each in logprobs.topk(question["logprobs"]))
        names = [tokenizer.decode([token]) for token in tokens]
        if chat_form:
            top = [{"id": t, "token": n, "logprob": v} for t, n, v in zip(tokens, names, values, strict=True)]
            listed: dict[str, Any] = {"content": [{**top[0], "top_logprobs": top}]}
        else:
            # Where two tokens read alike the likelier one is told, as servers do.
            listed = {"top_logprobs": [dict(reversed(list(zip(names, values, strict=True))))]}
        return 200, {"choices": [{"text": names[0], "logprobs": listed}], "usage": {"prompt_tokens": len(ids)}}

    return answer


def recorded(exchanges: Sequence[tuple[dict[str, Any], int, dict[str, Any]]]) -> Answer:
    """What a real server answered when it was asked the same, to the letter."""
    known = {json.dumps(question): (status, body) for question, status, body in exchanges}

    def answer(question: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        return known.get(json.dumps(question), (404, {"error": "never asked when this was recorded"}))

    return answer


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
            with self.server.lock:
                status, found = self.server.answer(question)
            body = json.dumps(found).encode()
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
