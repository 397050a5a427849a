"""Opens beside a writer, one after another as fast as they go: each shows one whole generation, none an earlier one.

Passages come in pairs, a left and a right one with one text between them. Every write changes both or neither, so that
a reader that sees one without the other, or two texts, has seen a mixture of two generations.
"""

import multiprocessing
import random
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from d2llm.index import Index
from tests.index.index_fakes import DIM, WordEncoder
from tests.torture.tally import Tally

_PAIRS = 12
#: Opens whose texts are read too; the others look at ids and at what identifies the state.
_READ = 8


def run(seconds: float, seed: int, folder: Path) -> list[Tally]:
    """Open for some seconds beside one process that deletes, replaces, appends, compacts and fits."""
    tally, writes = Tally("opens beside a writer that deletes"), multiprocessing.get_context("spawn").Value("q", 0)
    path, ends = folder / "opens", time.time() + seconds
    _write(path, random.Random(seed), 0)
    writer = multiprocessing.get_context("spawn").Process(target=_writes, args=(path, seed, ends, writes))
    writer.start()
    newest, index = -1, None
    while time.time() < ends:
        with tally.attempt(f"opens, seed {seed}, open {tally.tried}"):
            index = Index.open(path)
            newest = check(index, newest, texts=tally.tried % _READ == 0)
    writer.join()
    if writer.exitcode:
        tally.fault(f"opens, seed {seed}: the writer ended with {writer.exitcode}")
    return [tally, Tally("writes beside opens", writes.value)]


def check(index: Index, newest: int, texts: bool) -> int:
    """The generation that an index shows, ``newest`` or later, after a look at its pairs.

    Raises:
        AssertionError: for an earlier one, or a mixture.
    """
    state = index._snapshot
    if state.manifest.generation < newest:
        raise AssertionError(f"generation {state.manifest.generation} after {newest}")
    sides: dict[str, set[str]] = defaultdict(set)
    for position in state.live.tolist() if texts else ():
        passage = state.passage(position)
        side, _, pair = passage.id.partition("-")
        sides[pair] |= {side, passage.text or ""}
    for name in () if texts else index.ids():
        side, _, pair = name.partition("-")
        sides[pair].add(side)
    if torn := {pair: found for pair, found in sides.items() if len(found) != 2 + texts}:
        raise AssertionError(
            f"generation {state.manifest.generation}: {len(torn)} pairs torn, such as {torn.popitem()}"
        )
    return state.manifest.generation


def _writes(path: Path, seed: int, ends: float, writes: Any) -> None:
    generator = random.Random(seed + 1)
    while time.time() < ends:
        _write(path, generator, writes.value)
        writes.value += 1


def _write(path: Path, generator: random.Random, number: int) -> None:
    """One change of the index, or a new one."""
    if number % 40 == 0:
        pairs = [f"{number}.{i}" for i in range(_PAIRS)]
        names, texts, vectors = _passages(pairs, number)
        options = {"shard_size": generator.randrange(3, 30), "progress": False, "overwrite": True}
        Index.build(WordEncoder(), texts, path, ids=names, vectors=vectors, **options)
        return
    index = Index.open(path, WordEncoder())
    held = sorted({name.partition("-")[2] for name in index.ids()})
    kind = generator.choice(("delete", "delete", "replace", "append", "compact", "fit"))
    some = generator.sample(held, min(len(held), generator.randrange(1, 4)))
    if kind == "delete" and len(held) > len(some):
        index.delete([f"{side}-{pair}" for pair in some for side in ("left", "right")])
    elif kind == "compact":
        index.compact(shard_size=generator.randrange(3, 30))
    elif kind == "fit" and number % 5 == 0:
        index.fit_surrogate(rank=2, progress=False)
    else:
        names, texts, vectors = _passages(some if kind == "replace" else [f"{number}.{i}" for i in range(3)], number)
        index.append(texts, names, vectors=vectors, shard_size=4, progress=False, upsert=kind == "replace")


def _passages(pairs: list[str], number: int) -> tuple[list[str], list[str], np.ndarray]:
    names = [f"{side}-{pair}" for pair in pairs for side in ("left", "right")]
    vectors = np.random.default_rng(number).standard_normal((len(names), DIM), np.float32)
    return names, [f"red text {number}" for _ in names], vectors
