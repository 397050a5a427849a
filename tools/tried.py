"""What became of every candidate that was tried: a file with a line for each, which no end of the program undoes.

    {"kernel": "scores", "widths": {"F": 512}, "dtype": "bfloat16", "source": "timed on ...", "tiles": {...},
     "outcome": "right", "seconds": 0.001}

A candidate is noted before it is launched too: one that twice did not come back is not launched a third time.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from d2llm.files import atomic_path

STARTED, RIGHT, WRONG, SLOWER, FAILED = "started", "right", "wrong", "slower", "failed"
_MOST_STARTS = 2

Tiles = dict[str, Any]


class Tried:
    """The candidates of one row of the table on one machine.

    Args:
        path: the file, which need not exist and may hold other rows.
        head: what the lines of this row have in common.
    """

    def __init__(self, path: Path, head: dict[str, Any]) -> None:
        self._path, self._head = path, head
        self._lines = [line for line in _read(path) if self._ours(line)]

    def note(self, tiles: Tiles, outcome: str, **found: Any) -> None:
        """Append a line."""
        line = self._head | {"tiles": tiles, "outcome": outcome} | found
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with open(self._path, "a", encoding="utf-8") as file:
            # What a kill cut short must not join this.
            file.write("\n" + json.dumps(line))
        self._lines.append(line)

    def forget(self) -> None:
        """Take this row's lines out of the file."""
        kept = [line for line in _read(self._path) if not self._ours(line)]
        if self._lines:
            with atomic_path(self._path) as path:
                path.write_text("".join(f"\n{json.dumps(line)}" for line in kept), encoding="utf-8")
        self._lines = []

    def done(self, tiles: Tiles) -> bool:
        """Whether there is nothing more to learn of a candidate."""
        outcomes = Counter(line["outcome"] for line in self._lines if line["tiles"] == tiles)
        return outcomes[STARTED] >= _MOST_STARTS or outcomes.total() > outcomes[STARTED]

    def seconds(self, tiles: Tiles) -> float | None:
        """What a candidate took, or None where it did not run or was wrong."""
        lines = (line for line in reversed(self._lines) if line["tiles"] == tiles)
        return next((line["seconds"] for line in lines if line["outcome"] in (RIGHT, SLOWER)), None)

    def best(self) -> tuple[float, Tiles] | None:
        """The fastest right candidate, with its seconds."""
        right = [(line["seconds"], line["tiles"]) for line in self._lines if line["outcome"] == RIGHT]
        return min(right, key=lambda one: one[0], default=None)

    def _ours(self, line: dict[str, Any]) -> bool:
        return all(line.get(name) == value for name, value in self._head.items())


def _read(path: Path) -> list[dict[str, Any]]:
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:
            # Cut short.
            continue
    return lines
