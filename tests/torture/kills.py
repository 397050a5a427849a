"""SIGKILL at any moment of a write."""

import random
import time
from pathlib import Path
from typing import Any

from tests.torture.interrupted import context, over_all, write
from tests.torture.tally import Tally
from tests.torture.writers import WRITERS


def run(seconds: float, seed: int, folder: Path) -> list[Tally]:
    """Kill each writer again and again."""
    server, generator, longest = context(), random.Random(seed), dict.fromkeys(WRITERS, 0.05)

    def once(name: str, folder: Path, before: Any, number: int) -> str:
        pipe, theirs = server.Pipe()
        process = server.Process(target=write, args=(name, folder, before, number, None, theirs))
        process.start()
        theirs.close()
        pipe.recv()
        began = time.time()
        if not pipe.poll(generator.uniform(0, longest[name])):
            process.kill()
            process.join()
            # Later and later, until one is done, which tells how long it takes.
            longest[name] *= 1.05
            return "killed"
        longest[name] = 1.2 * (time.time() - began)
        verdict = str(pipe.recv())
        process.join()
        return verdict

    return over_all("kills", seconds, seed, folder, once)
