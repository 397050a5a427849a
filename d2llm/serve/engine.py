"""The student, the batcher in front of it, the index behind it, and perhaps a teacher: what every dialect asks."""

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from d2llm.errors import D2LLMError, InputError
from d2llm.index import Index
from d2llm.index.hits import Hit
from d2llm.index.manifest import NAME as MANIFEST
from d2llm.last_stage import reorder
from d2llm.serve.batching import Batcher
from d2llm.serve.limits import Limits
from d2llm.serve.memory import Trimming
from d2llm.serve.refusal import Refusal
from d2llm.student import D2LLM
from d2llm.tasks import task_index
from d2llm.teacher.scoring import Judge
from d2llm.texts import has_bytes

_T = TypeVar("_T")
_LOG = logging.getLogger(__name__)


class Engine:
    """One student in memory for all requests, and perhaps an index that it made.

    Args:
        student: encodes and judges.
        index: folder of an index made by it, or None.
        name: of the model, as clients ask for it.
        limits: bounds of a request.
        judge: a teacher that orders what was found anew, for searches that ask for it.

    Raises:
        D2LLMError: as :meth:`Index.open` does.
    """

    def __init__(
        self, student: D2LLM, index: Path | None, name: str, limits: Limits, judge: Judge | None = None
    ) -> None:
        self.student, self.name, self.limits, self.path = student.eval(), name, limits, index
        self.judge = judge
        self._trimming = Trimming()
        self.batcher = Batcher(self._encode, limits)
        self._searching = _Line("searches", os.cpu_count() or 1, limits.searches)
        # A teacher takes every core by itself, and seconds: whoever does not ask for it does not wait for it.
        self._judging = _Line("searches with the teacher", 1, limits.judged)
        self._lock = threading.Lock()
        self._seen: object = None
        self._index: Index | None = None
        self.index()

    def index(self, newest: bool = False) -> Index | None:
        """The index in its newest generation; searches that run keep the one that they began with.

        While one thread opens a generation, the others go on with the one before, unless they ask for the ``newest``.
        Where it cannot be opened, the one before stays, and the log says why.
        """
        if self.path is not None and self._lock.acquire(blocking=newest or self._index is None):
            try:
                self._index = self._reopened(self.path)
            finally:
                self._lock.release()
        return self._index

    def _encode(self, texts: list[str], kind: str) -> np.ndarray:
        vectors: np.ndarray = self.student.encode(texts, kind, show_progress=False)
        self._trimming()
        return vectors

    def _reopened(self, path: Path) -> Index:
        try:
            status = (path / MANIFEST).stat()
            seen = (status.st_ino, status.st_mtime_ns)
            if self._index is not None and seen == self._seen:
                return self._index
            # One that cannot be opened is not tried at every search.
            self._seen = seen
            return Index.open(path, _Batched(self))
        except (D2LLMError, OSError) as error:
            if self._index is None:
                raise
            _LOG.warning("%s cannot be opened, the generation before stays: %s", path, error)
            return self._index

    def check_texts(self, texts: Sequence[str], name: str) -> None:
        """Refuse what no student can encode.

        Raises:
            Refusal: for no or too many texts, or one that is empty, too long or not in Unicode.
        """
        if not texts:
            raise Refusal(400, f"{name}: expected at least one text, got none", param=name)
        if len(texts) > self.limits.texts:
            raise Refusal(413, f"{name}: expected at most {self.limits.texts} texts, got {len(texts)}", param=name)
        for number, text in enumerate(texts):
            if not text.strip():
                raise Refusal(400, f"{name}: text {number} is empty", param=name)
            if not has_bytes(text):
                raise Refusal(400, f"{name}: text {number} has half of a surrogate pair", param=name)
            if len(text) > self.limits.characters:
                most = self.limits.characters
                raise Refusal(
                    413, f"{name}: text {number} has {len(text)} characters, expected at most {most}", param=name
                )

    async def embed(self, texts: Sequence[str], kind: str) -> np.ndarray:
        """Embeddings (N, D) float32 of checked texts; ``kind`` as for :meth:`D2LLM.encode`."""
        return await self._within(asyncio.wrap_future(self.batcher.submit(texts, kind)))

    async def scores(self, queries: Sequence[str], passages: Sequence[str], task: str) -> np.ndarray:
        """IEM logits (N,) float32 of N passages, each with its query or all with the one that there is."""
        branch = _branch(task)
        q, p = await asyncio.gather(self.embed(queries, "query"), self.embed(passages, "passage"))
        return await self.work(lambda: self._judge(q, p, branch))

    async def work(self, run: Callable[[], _T]) -> _T:
        """The result of a function that runs in a thread beside the others.

        Raises:
            Refusal: 429 where too many wait, 504 where it takes too long, 409 while another process writes,
                400 for what the user can mend.
        """
        return await self._stand(self._searching, run)

    def teacher(self) -> Judge:
        """The teacher.

        Raises:
            Refusal: 400 where there is none.
        """
        if self.judge is None:
            raise Refusal(400, "teacher: the server has none; start it with --teacher", param="teacher")
        return self.judge

    async def reorder(self, judge: Judge, query: str, hits: list[Hit], task: str) -> list[Hit]:
        """What was found, the best of it ordered anew by a teacher, as :func:`d2llm.last_stage.reorder` does.

        Raises:
            Refusal: as :meth:`work`.
        """
        return (await self._stand(self._judging, lambda: reorder(judge, [query], [hits], task)))[0]

    def tokens(self, texts: Sequence[str]) -> int:
        """Tokens of texts, uncut, as clients count what they used."""
        return sum(map(len, self.student.tokenizer(list(texts))["input_ids"]))

    def close(self) -> None:
        """Finish what runs and take no more."""
        self.batcher.close()
        self._searching.pool.shutdown()
        self._judging.pool.shutdown()

    @torch.inference_mode()
    def _judge(self, q: np.ndarray, p: np.ndarray, branch: int) -> np.ndarray:
        device, dtype = self.student.device, self.student.head_dtype
        queries, passages = (torch.from_numpy(x).to(device, dtype) for x in (q, p))
        tasks = torch.full((len(p),), branch, device=device)
        return self.student.iem(queries.expand(len(p), -1), passages, tasks).float().cpu().numpy()

    async def _stand(self, line: "_Line", run: Callable[[], _T]) -> _T:
        if line.standing >= line.most:
            raise Refusal(429, f"{line.standing} {line.what} wait; try again", retry_after=1)
        line.standing += 1
        try:
            return await self._within(asyncio.get_running_loop().run_in_executor(line.pool, run))
        finally:
            line.standing -= 1

    async def _within(self, answer: "asyncio.Future[_T]") -> _T:
        try:
            return await asyncio.wait_for(answer, self.limits.seconds)
        except asyncio.TimeoutError:
            raise Refusal(504, f"not answered within {self.limits.seconds:g} s; try again", retry_after=1) from None
        except D2LLMError as error:
            raise Refusal.because(error) from None


class _Line:
    """Threads that do one kind of work, and whoever waits for them or is served."""

    def __init__(self, what: str, threads: int, most: int) -> None:
        self.what, self.most, self.standing = what, most, 0
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix=what)


def _branch(task: str) -> int:
    try:
        return task_index(task)
    except InputError as error:
        raise Refusal(400, str(error), param="task") from None


class _Batched:
    """The student as an index asks for it, in whose place the batcher encodes: texts share batches with others."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.iem = engine.student.iem
        self.config = engine.student.config

    def encode(self, texts: Sequence[str], *, kind: str, batch_size: int | None, show_progress: bool) -> Any:
        return self._engine.batcher.submit(texts, kind).result(self._engine.limits.seconds)

    def fingerprint(self) -> str:
        return self._engine.student.fingerprint()
