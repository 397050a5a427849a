"""A surrogate's vectors for engines of others, which then choose what is scored in full here."""

import json
from pathlib import Path

import numpy as np

from d2llm.errors import InputError
from d2llm.files import atomic_path
from d2llm.index.covering import Covering
from d2llm.index.snapshot import Snapshot

VECTORS, IDS = "vectors.npy", "ids.jsonl"
# Passages mapped at a time: 64 MB in float32 at F = 512.
_ROWS = 1 << 15


def surrogate_of(snapshot: Snapshot) -> Covering:
    """The surrogate.

    Raises:
        InputError: if there is none.
    """
    if snapshot.surrogate is None:
        raise InputError("index: expected one with a surrogate, got one without; call fit_surrogate")
    return snapshot.surrogate[0]


def export(snapshot: Snapshot, folder: Path) -> None:
    """Write vectors and ids of the live passages, in order, as ``Index.export_surrogate`` says.

    Raises:
        InputError: if there is no surrogate.
        OSError: if the disk fills.
    """
    covering = surrogate_of(snapshot)
    with atomic_path(folder) as scratch:
        scratch.mkdir()
        shape = snapshot.size, covering.width
        if snapshot.size:
            made = np.lib.format.open_memmap(scratch / VECTORS, "w+", np.int8, shape)
            for first in range(0, snapshot.size, _ROWS):
                places = snapshot.live[first : first + _ROWS]
                made[first : first + len(places)] = covering.maps.passages(snapshot.gather(places)).numpy()
            made.flush()
        else:
            # An empty file cannot be mapped.
            np.save(scratch / VECTORS, np.zeros(shape, np.int8))
        with open(scratch / IDS, "w", encoding="ascii") as handle:
            handle.writelines(f"{json.dumps(name)}\n" for name in snapshot.ids())
