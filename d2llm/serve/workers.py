"""The server as processes: one, or several workers that take their connections from one socket.

A worker maps the files of the index into its memory, of which the system keeps one copy for all. The student, the
lengths that BM25 goes by and what a request needs are its own.
"""

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from socket import socket
from typing import Any

from d2llm.errors import D2LLMError

#: Seconds that requests have to finish in when the server is asked to stop.
_GRACE = 30


@dataclass(frozen=True)
class Serving:
    """What a process serves: arguments of :class:`Engine` and :func:`create_app`, students and teachers as folders."""

    model: Path
    index: Path | None
    name: str
    token: str | None
    writable: bool
    hosts: list[str] | None
    teacher: Path | None = None

    def application(self) -> Any:
        """The application, with the student and the teacher loaded and the index open.

        Raises:
            D2LLMError: for a student, a teacher or an index that cannot be loaded.
        """
        from d2llm.cli.options import load_student, load_teacher
        from d2llm.serve.app import create_app
        from d2llm.serve.engine import Engine
        from d2llm.serve.limits import Limits

        judge = None if self.teacher is None else load_teacher(None, self.teacher, None)
        engine = Engine(load_student(self.model), self.index, self.name, Limits(), judge)
        return create_app(engine, token=self.token, writable=self.writable, hosts=self.hosts)


def start(serving: Serving, host: str, port: int, workers: int, announce: Callable[[int], None]) -> int:
    """Serve until a signal says stop, and finish what was asked before; the exit status.

    Args:
        serving: what every worker serves.
        host, port: to listen on; port 0 takes any.
        workers: processes; more than one share the cores.
        announce: called with the port once all of them answer.

    Raises:
        D2LLMError: as :meth:`Serving.application`, where there is one process.
        OSError, SystemExit: if the port is taken.
    """
    import uvicorn

    if workers == 1:
        application = serving.application()
        listening = uvicorn.Config(application, host, port, log_level="warning").bind_socket()
        announce(listening.getsockname()[1])
        _answer(application, listening)
        return 0
    listening = uvicorn.Config(_work, host, port, log_level="warning").bind_socket()
    threads = max(1, (os.cpu_count() or 1) // workers)
    with tempfile.TemporaryDirectory() as folder:
        # Where their counts meet; read when prometheus_client is imported.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        begin = partial(_Worker, serving, listening, threads)
        return _supervise(begin, workers, lambda: announce(listening.getsockname()[1]))


def _answer(application: Any, listening: socket) -> None:
    import uvicorn

    config = uvicorn.Config(application, log_level="warning", access_log=False, timeout_graceful_shutdown=_GRACE)
    uvicorn.Server(config).run([listening])


def _work(serving: Serving, listening: socket, threads: int, ready: Connection) -> None:
    """A worker's process: it ends with the one that started it, and Ctrl-C is that one's to pass on."""
    import torch

    os.setpgrp()
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    torch.set_num_threads(threads)
    try:
        application = serving.application()
    except D2LLMError as error:
        print(f"d2llm serve: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    ready.send(None)
    _answer(application, listening)


def _end_with(parent: Any) -> None:
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


class _Worker:
    def __init__(self, serving: Serving, listening: socket, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe(duplex=False)
        self.process = context.Process(target=_work, args=(serving, listening, threads, theirs))
        self.process.start()
        theirs.close()

    @cached_property
    def began(self) -> bool:
        """Whether it serves, once that is known; False if it ended before."""
        try:
            self._pipe.recv()
        except EOFError:
            return False
        return True


def _supervise(start: Callable[[], _Worker], count: int, announce: Callable[[], None]) -> int:
    """Keep workers running until a signal says stop; 2 if one could not begin. One that dies is replaced."""
    workers: list[_Worker] = []
    stopping = False

    def stop(*_: Any) -> None:
        nonlocal stopping
        stopping = True
        for worker in workers:
            worker.process.terminate()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    workers += [start() for _ in range(count)]
    failed = not all([worker.began for worker in workers])
    if failed:
        stop()
    elif not stopping:
        announce()
    while workers:
        wait([worker.process.sentinel for worker in workers])
        for worker in [worker for worker in workers if worker.process.exitcode is not None]:
            workers.remove(worker)
            if not stopping and worker.began:
                workers.append(start())
            elif not stopping:
                failed = True
                stop()
    return 2 if failed else 0
