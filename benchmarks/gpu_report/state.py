"""What a report holds, and how one call takes over what earlier ones left in the same folder.

Each step of the plan is noted beside its results: what is done is not done again unless the sources have changed, and
what failed, or was in hand when a call was ended, is tried once more, after everything else.
"""

import hashlib
from pathlib import Path
from typing import Any

from benchmarks.gpu_report.children import ROOT
from d2llm.files import read_json

DONE, FAILED, DROPPED, IN_HAND = "done", "failed", "dropped", "in hand"
_MOST_TRIES = 2
_SOURCES = ("d2llm_kernels/**/*.py", "d2llm_kernels/**/*.json", "csrc/cuda/**/*", "tests/gpu/*.py")

Values = dict[str, Any]


def load(folder: Path, device: str, smoke: bool, again: bool) -> Values:
    """The report in a folder, if it is of this device, else an empty one."""
    path = folder / "report.json"
    known = read_json(path) if path.exists() and not again else {}
    same = "steps" in known and known["smoke"] == smoke and known["machine"]["device"] == device
    empty: Values = {
        "machine": None,
        "smoke": smoke,
        "seconds": 0.0,
        "build": None,
        "ceilings": None,
        "l2": None,
        "launches": {},
        "tests": None,
        "sanitizers": {},
        "rows": [],
        "end_to_end": [],
        "lags": {},
        "tiles": {},
        "steps": {},
    }
    return known if same else empty


def sources() -> str:
    """A name for the state of the kernels, their tests and what times them."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in _SOURCES for path in ROOT.glob(pattern) if path.is_file()):
        digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()[:12]


class Steps:
    """How far the steps of a report have come.

    Args:
        noted: the report's own notes, which are changed in place.
    """

    def __init__(self, noted: dict[str, Values]) -> None:
        self._noted, self._sources = noted, sources()

    def outcome(self, name: str) -> str | None:
        """What became of a step under the sources of today, or None if it was not come to."""
        return self._of(name).get("outcome")

    def done(self, name: str) -> bool:
        """Whether there is nothing to be had from another try."""
        note = self._of(name)
        return note.get("outcome") == DONE or note.get("tries", 0) >= _MOST_TRIES

    def tries(self, name: str) -> int:
        """How often it was begun and came to no result."""
        return int(self._of(name).get("tries", 0))

    def begin(self, name: str) -> None:
        """It is in hand: should the program end now, it was this."""
        self._note(name, IN_HAND, self.tries(name) + 1)

    def note(self, name: str, outcome: str, why: str = "") -> None:
        """What became of it."""
        self._note(name, outcome, self.tries(name), why)

    def _of(self, name: str) -> Values:
        note = self._noted.get(name, {})
        return note if note.get("sources") == self._sources else {}

    def _note(self, name: str, outcome: str, tries: int, why: str = "") -> None:
        self._noted[name] = {"outcome": outcome, "tries": tries, "sources": self._sources, "why": why}
