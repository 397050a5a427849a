"""A reader beside a writer: what it opens is whole, verifies, and is never older than what it saw before."""

import multiprocessing
import random
import re
import time
from pathlib import Path
from typing import Any

import numpy as np

from d2llm.index import Index
from d2llm.index.segment import DTYPES
from tests.index.index_fakes import DIM, WordEncoder
from tests.torture.tally import Tally

#: Indexes that stay open while the writer goes on; each must keep showing what it showed at first.
_HELD = 4


def run(seconds: float, seed: int, folder: Path) -> list[Tally]:
    """Read for some seconds beside one process that rebuilds, appends and deletes."""
    tally = Tally("reads beside a writer")
    path, ends = folder / "beside", time.time() + seconds
    _rebuild(path, 0, random.Random(seed))
    spawn = multiprocessing.get_context("spawn")
    writes = spawn.Value("q", 0)
    writer = spawn.Process(target=_write, args=(path, seed, ends, writes))
    writer.start()
    generator, held, newest = random.Random(seed + 1), [], 0
    while time.time() < ends:
        with tally.attempt(f"beside, seed {seed}, read {tally.tried}"):
            index = Index.open(path, WordEncoder(), verify=generator.random() < 0.5)
            newest = _check(index, newest)
            held.append((index, _shown(index)))
        with tally.attempt(f"beside, seed {seed}, look again {tally.tried}"):
            index, shown = held.pop(generator.randrange(len(held))) if len(held) > _HELD else generator.choice(held)
            index.verify()
            if _shown(index) != shown:
                raise AssertionError("an open index shows another state than it was opened at")
    writer.join()
    if writer.exitcode:
        tally.fault(f"beside, seed {seed}: the writer ended with {writer.exitcode}")
    return [tally, Tally("writes beside a reader", writes.value)]


def _write(path: Path, seed: int, ends: float, writes: Any) -> None:
    generator, number = random.Random(seed + 2), 0
    while time.time() < ends:
        number += 1
        index = _rebuild(path, number, generator)
        writes.value += 1
        for _ in range(generator.randrange(12)):
            ids = index.ids()
            kind = generator.choice(("delete", "append", "compact") * 6 + ("fit",))
            if kind == "delete" and len(ids) > 1:
                index.delete(generator.sample(ids, generator.randrange(1, len(ids))))
            elif kind == "compact":
                index.compact(shard_size=generator.randrange(4, 60))
            elif kind == "fit" and len(ids) > 3:
                index.fit_surrogate(rank=4, progress=False)
            else:
                _append(index, number, generator)
            writes.value += 1


def _rebuild(path: Path, number: int, generator: random.Random) -> Index:
    """Passages of a round say which round it is, so that a mixture of two would show."""
    ids, texts, vectors = _passages(number, 0, generator)
    return Index.build(
        WordEncoder(),
        texts,
        path,
        ids=ids,
        vectors=vectors,
        dtype=generator.choice(list(DTYPES)),
        keep_vectors=generator.random() < 0.5,
        shard_size=generator.randrange(4, 60),
        progress=False,
        overwrite=True,
    )


def _append(index: Index, number: int, generator: random.Random) -> None:
    ids, texts, vectors = _passages(number, generator.getrandbits(48), generator)
    index.append(texts, ids, vectors=vectors, shard_size=generator.randrange(4, 60), progress=False)


def _passages(number: int, first: int, generator: random.Random) -> tuple[list[str], list[str], np.ndarray]:
    count = generator.randrange(5, 100)
    ids = [f"{number}-{first + i}" for i in range(count)]
    vectors = np.random.default_rng(generator.getrandbits(32)).standard_normal((count, DIM), np.float32)
    return ids, [f"red text {name}" for name in ids], vectors


def _shown(index: Index) -> list[tuple[str, float, str | None]]:
    """What a search finds, worst and best: every passage of the index."""
    (hits,) = index.search("red text", len(index))
    return [(hit.id, hit.score, hit.text) for hit in hits]


def _check(index: Index, newest: int) -> int:
    """The round that an index shows, which is one, and ``newest`` or later."""
    shown, ids = _shown(index), index.ids()
    if sorted(name for name, _, _ in shown) != sorted(ids) or len(ids) != len(index):
        raise AssertionError(f"{len(ids)} ids, {len(shown)} hits, {len(index)} passages")
    if wrong := [name for name, _, text in shown if text != f"red text {name}"]:
        raise AssertionError(f"other texts than they had: {wrong[:3]}")
    rounds = {int(re.match(r"\d+", name)[0]) for name in ids}
    if len(rounds) != 1 or min(rounds) < newest:
        raise AssertionError(f"rounds {rounds} after {newest}")
    return rounds.pop()
