"""Processes of a test's own, forked from a server that has imported what takes seconds, so that each starts at once."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from functools import cache
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext, ForkServerProcess

#: What most of them would spend their time importing.
_IMPORTED = ["d2llm.index", "d2llm.teacher.tuning", "d2llm.training"]


@cache
def server() -> ForkServerContext:
    """What forks: it has imported modules, and run nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    return context


def started(function: Callable[..., object], *arguments: object, **environment: str) -> ForkServerProcess:
    """A process that calls a function of a module, with some environment variables set before."""
    process = server().Process(target=_call, args=(function, arguments, environment), daemon=True)
    process.start()
    return process


def _call(function: Callable[..., object], arguments: tuple[object, ...], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    function(*arguments)


def exit_code(function: Callable[..., object], *arguments: object) -> int | None:
    """How such a process ends: 0, 1 after an exception, the negative number of the signal that ended it."""
    process = started(function, *arguments)
    process.join()
    return process.exitcode


def run_two(function: Callable[..., object], *arguments: object) -> None:
    """Call a function in two processes of one group, as a launcher of torch would; both must end well."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        group = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    group["LOCAL_WORLD_SIZE"] = "2"
    both = [started(function, *arguments, **group, RANK=rank, LOCAL_RANK=rank) for rank in ("0", "1")]
    while alive := [process for process in both if process.is_alive()]:
        wait([process.sentinel for process in alive])
        if any(process.exitcode for process in both):
            # The other would wait for this one.
            for process in alive:
                process.kill()
    assert [process.exitcode for process in both] == [0, 0]
