"""What every request passes: the size of its body, the token, and the count of what came of it."""

import asyncio
import hmac
import json
import os
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from d2llm.serve.limits import Limits
from d2llm.serve.refusal import Refusal

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
#: Open to everybody: an orchestrator has no token, and the page asks its reader for it.
_OPEN = ("/", "/health", "/ready")


class Metrics:
    """Counts of a server, under Prometheus' names; of all its workers together, where there are several.

    Args:
        waiting: how many texts wait to be encoded.
    """

    def __init__(self, waiting: Callable[[], int]) -> None:
        self._count_waiting = waiting
        self.registry = CollectorRegistry()
        self.requests = Counter("d2llm_requests", "Requests answered.", ["path", "status"], registry=self.registry)
        self.seconds = Histogram(
            "d2llm_request_seconds", "From the first byte to the last.", ["path"], registry=self.registry
        )
        self.waiting = Gauge(
            "d2llm_waiting_texts",
            "Texts that waited to be encoded when a request was last answered.",
            registry=self.registry,
            multiprocess_mode="livesum",
        )

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Count a request."""
        self.requests.labels(path, str(status)).inc()
        self.seconds.labels(path).observe(seconds)
        self.waiting.set(self._count_waiting())

    def text(self) -> bytes:
        """What a scraper reads."""
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self.registry)
        of_all = CollectorRegistry()
        MultiProcessCollector(of_all)
        return generate_latest(of_all)


class Guard:
    """ASGI around the application.

    Args:
        app: what it guards.
        limits: ``body`` and ``seconds`` are read here.
        token: what ``Authorization: Bearer`` must say; None asks for nothing.
        metrics: where it counts.
        paths: those of the application, by which requests are counted; others count as "other".
    """

    def __init__(self, app: Any, limits: Limits, token: str | None, metrics: Metrics, paths: frozenset[str]) -> None:
        self._app, self._metrics, self._paths = app, metrics, paths
        self._body, self._seconds = limits.body, limits.seconds
        self._token = None if token is None else token.encode()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status, path = time.perf_counter(), 500, scope["path"]

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            self._check(scope, path)
            body = await asyncio.wait_for(self._read(receive), self._seconds)
        except Refusal as error:
            await _send(error, path, watched)
        except asyncio.TimeoutError:
            await _send(Refusal(408, f"the body did not come within {self._seconds:g} s"), path, watched)
        else:
            await self._app(scope, _replayed(body, receive), watched)
        finally:
            known = path if path in self._paths else "/documents" if path.startswith("/documents/") else "other"
            self._metrics.answered(known, status, time.perf_counter() - start)

    async def _read(self, receive: Receive) -> bytes:
        """The whole body, which is refused as soon as it is too large, whatever its header said."""
        parts, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                break
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            more = message.get("more_body", False)
            if size > self._body:
                raise self._too_large()
        return b"".join(parts)

    def _check(self, scope: Message, path: str) -> None:
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length[:20]) > self._body:
            raise self._too_large()
        if self._token is None or path in _OPEN:
            return
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(given, self._token):
            raise Refusal(401, "expected the header 'Authorization: Bearer TOKEN'", code="invalid_api_key")

    def _too_large(self) -> Refusal:
        return Refusal(413, f"the body has more than {self._body} bytes")


def _replayed(body: bytes, receive: Receive) -> Receive:
    """What gives a body that was read, and after it what comes."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _send(refusal: Refusal, path: str, send: Send) -> None:
    headers = {"Content-Type": "application/json", **refusal.headers}
    pairs = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": pairs})
    await send({"type": "http.response.body", "body": json.dumps(refusal.body(path)).encode()})
