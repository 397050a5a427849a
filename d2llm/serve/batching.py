"""Texts of several requests encoded together, in one thread: a batch costs little more than a text."""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import NamedTuple

import numpy as np

from d2llm.serve.limits import Limits
from d2llm.serve.refusal import Refusal
from d2llm.student.encoding import KINDS

Encode = Callable[[list[str], str], np.ndarray]


class _Asked(NamedTuple):
    texts: Sequence[str]
    kind: str
    answer: "Future[np.ndarray]"


class Batcher:
    """Encodes what is asked for by several threads, a few milliseconds' worth of requests at a time.

    Args:
        encode: texts and their kind to embeddings (N, D) float32; called in one thread only.
        limits: ``waiting``, ``gather`` and ``batch`` are read here.
    """

    def __init__(self, encode: Encode, limits: Limits) -> None:
        self._encode, self._limits = encode, limits
        self._asked: queue.SimpleQueue[_Asked | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self.waiting = 0
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="encode", daemon=True)
        self._thread.start()

    def submit(self, texts: Sequence[str], kind: str) -> "Future[np.ndarray]":
        """Embeddings (N, D) float32 of N texts, once it is their turn.

        Raises:
            Refusal: 429 where too many texts wait, 503 once it is closed.
        """
        answer: Future[np.ndarray] = Future()
        with self._lock:
            if self._closed:
                raise Refusal(503, "the server is stopping", retry_after=1)
            # A request alone is served, however large its limits let it be.
            if self.waiting and self.waiting + len(texts) > self._limits.waiting:
                raise Refusal(429, f"{self.waiting} texts wait to be encoded; try again", retry_after=1)
            self.waiting += len(texts)
            self._asked.put(_Asked(texts, kind, answer))
        answer.add_done_callback(lambda _: self._left(len(texts)))
        return answer

    def close(self) -> None:
        """Encode what waits, and take no more."""
        with self._lock:
            self._closed = True
            self._asked.put(None)
        self._thread.join()

    def _left(self, count: int) -> None:
        with self._lock:
            self.waiting -= count

    def _run(self) -> None:
        while (batch := self._gathered()) is not None:
            for kind in KINDS:
                self._answer([each for each in batch if each.kind == kind], kind)

    def _gathered(self) -> list[_Asked] | None:
        """The next requests, or None after the last."""
        first = self._asked.get()
        if first is None:
            return None
        batch, count, until = [first], len(first.texts), time.monotonic() + self._limits.gather
        while count < self._limits.batch:
            try:
                more = self._asked.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            if more is None:
                self._asked.put(None)
                break
            batch.append(more)
            count += len(more.texts)
        return batch

    def _answer(self, batch: list[_Asked], kind: str) -> None:
        # Who gave up waiting is not encoded for.
        batch = [each for each in batch if each.answer.set_running_or_notify_cancel()]
        if not batch:
            return
        try:
            vectors = self._encode([text for each in batch for text in each.texts], kind)
        except Exception as error:
            for each in batch:
                each.answer.set_exception(error)
            return
        first = 0
        for each in batch:
            each.answer.set_result(vectors[first : first + len(each.texts)])
            first += len(each.texts)
