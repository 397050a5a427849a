"""Writers that are killed, or find the disk full: what is there is what was there, or what was to be, and whole."""

import multiprocessing
import resource
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.torture.tally import Tally
from tests.torture.writers import WRITERS

#: Shares of the time: a run of training takes seconds, and a write of an index milliseconds.
_SHARES = {"index": 10, "mine": 1, "scores": 2, "student": 2, "teach": 1, "train": 3}


def context() -> Any:
    """A server of forks that have imported everything."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([__name__])
    return server


def write(name: str, folder: Path, before: Any, number: int, room: int | None, pipe: Connection) -> None:
    """In a process of its own: write, with at most ``room`` bytes a file, and tell how it went."""
    writer = WRITERS[name](folder)
    # What a writer needs once, such as a model, is there before it counts.
    writer.plan(before, number)
    pipe.send("ready")
    try:
        if room is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
        writer.write(before, number)
        pipe.send("written")
    except OSError:
        pipe.send("no room")
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")


def attempts(name: str, what: str, seconds: float, seed: int, folder: Path, once: Callable[..., str]) -> Tally:
    """Interrupt a writer again and again in one folder, and look at what is there each time."""
    tally, writer, ends = Tally(f"{what}: {name}"), WRITERS[name](folder), time.time() + seconds
    number, before = seed << 20, writer.state()
    while time.time() < ends:
        number += 1
        after = writer.plan(before, number)
        with tally.attempt(f"{what} {name}, number {number}"):
            verdict = once(name, folder, before, number)
            found = writer.state()
            tally.refused += verdict in ("killed", "no room")
            assert verdict in ("written", "killed", "no room"), verdict
            assert found == after if verdict == "written" else writer.fits(before, after, found), (verdict, found)
            before = found
        if name == "train" and before == after:
            # Done: the next one begins afresh.
            writer.path.rename(folder / f"done-{number}")
            before = writer.state()
    tally.tried, tally.refused = tally.refused, 0
    return tally


def over_all(what: str, seconds: float, seed: int, folder: Path, once: Callable[..., str]) -> list[Tally]:
    """Each writer for its share of the time, in a folder of its own."""
    unit, tallies = seconds / sum(_SHARES.values()), []
    for name, share in _SHARES.items():
        (folder / name).mkdir()
        tallies.append(attempts(name, what, share * unit, seed, folder / name, once))
    return tallies
