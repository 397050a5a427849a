"""Lost power: at any moment, with what was not synced dropped, the state is what was there, or what was to be.

A simulation: after each call that the recorder sees, the power fails in three ways.
"""

import random
import shutil
import time
from pathlib import Path
from typing import Any

from tests.torture.recorder import Disk, recorded
from tests.torture.tally import Tally
from tests.torture.writers import WRITERS

#: Writers whose every file is replaced as a whole.
WRITTEN = ("index", "scores", "mine", "student")


def run(seconds: float, seed: int, folder: Path) -> list[Tally]:
    """Lose power at every moment of writes of each kind."""
    tallies = []
    for name in WRITTEN:
        tallies.append(tally := Tally(f"lost power: {name}"))
        (folder / name).mkdir()
        ends, number, before = time.time() + seconds / len(WRITTEN), seed << 20, None
        while time.time() < ends:
            number += 1
            before = lose_power(name, folder / name, before, number, tally)
    return tallies


def lose_power(name: str, folder: Path, before: Any, number: int, tally: Tally) -> Any:
    """Write once in a folder, and look at what each loss of power would have left; the state that comes of it."""
    writer, generator, image = WRITERS[name](folder), random.Random(number), folder.with_name(f"{name}-after")
    after = writer.plan(before, number)
    # Looked at after the write, when the calls are the system's own again.
    images: dict[tuple[Any, ...], None] = {}
    disk = Disk(folder)
    with recorded(disk, lambda: images.update(_images(disk, generator))):
        writer.write(before, number)
    for files in images:
        with tally.attempt(f"lost power, {name} {number}"):
            _lay_out(image, dict(files))
            found = WRITERS[name](image).state()
            assert writer.fits(before, after, found), f"{found!s:.200}, neither {before!s:.200} nor {after!s:.200}"
    with tally.attempt(f"lost power after {name} {number}"):
        _lay_out(image, disk.after("least", generator))
        assert WRITERS[name](image).state() == after, "the write had returned"
    disk.close()
    return after


def _images(disk: Disk, generator: random.Random) -> dict[tuple[Any, ...], None]:
    return {tuple(sorted(disk.after(kind, generator).items())): None for kind in ("least", "names", "any")}


def _lay_out(place: Path, files: dict[str, bytes | None]) -> None:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for name, content in sorted(files.items()):
        if content is None:
            (place / name).mkdir()
        else:
            (place / name).write_bytes(content)
