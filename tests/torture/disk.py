"""A disk that is full: files may not grow beyond some size, which is refused to a process as a full disk is."""

import random
from pathlib import Path
from typing import Any

from tests.torture.interrupted import context, over_all, write
from tests.torture.tally import Tally

#: Most bytes of a file: some writes fail at once, some at their last file.
_ROOM = 30_000


def run(seconds: float, seed: int, folder: Path) -> list[Tally]:
    """Let each writer meet a full disk."""
    server, generator = context(), random.Random(seed)

    def once(name: str, folder: Path, before: Any, number: int) -> str:
        pipe, theirs = server.Pipe()
        room = generator.choice((0, generator.randrange(2000), generator.randrange(_ROOM), None))
        process = server.Process(target=write, args=(name, folder, before, number, room, theirs))
        process.start()
        theirs.close()
        pipe.recv()
        verdict = str(pipe.recv())
        process.join()
        return verdict

    return over_all("full disk", seconds, seed, folder, once)
