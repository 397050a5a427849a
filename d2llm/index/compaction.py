"""Fewer, fuller segments of the same passages: a search asks every segment, and many small ones cost more than one."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import torch

from d2llm.index.manifest import Manifest
from d2llm.index.segment import write_segment
from d2llm.index.snapshot import Snapshot, save_deleted
from d2llm.index.writer import SEGMENTS
from d2llm_kernels.rough.rows import Int8Rows

#: An append that leaves more segments than this behind the last full one puts some of them together.
MOST_SMALL = 32


def first_loose(snapshot: Snapshot, shard_size: int) -> int:
    """Number of the first segment that can be put together with others or has a passage deleted.

    Returns:
        the number of all segments where there is none.
    """
    parts = snapshot.deleted.split([segment.rows for segment in snapshot.segments])
    loose = [i for i, part in enumerate(parts) if len(part) < shard_size or bool(part.any())]
    # The last may be as short as it is.
    alone = loose == [len(parts) - 1] and not bool(parts[-1].any())
    return len(parts) if alone or not loose else loose[0]


def small_run(snapshot: Snapshot, shard_size: int) -> tuple[int, int] | None:
    """First and behind the last of the neighbours that an append puts together; None where there is no need.

    They have ``shard_size`` passages at most together, so that no append takes long, and none is larger than those
    behind it together, so that a passage is written anew as often as sizes double. Of several such runs it is the
    longest.
    """
    segments = snapshot.segments
    full = [i for i, segment in enumerate(segments) if segment.rows >= shard_size]
    first = max(full[-1] + 1 if full else 0, _covered(snapshot))
    end = len(segments)
    if end - first <= MOST_SMALL:
        return None
    runs = []
    while end > first:
        start, rows = end - 1, segments[end - 1].rows
        while start > first and segments[start - 1].rows <= min(rows, shard_size - rows):
            start -= 1
            rows += segments[start].rows
        runs.append((start, end))
        end = start
    longest = max(runs, key=lambda run: run[1] - run[0])
    return longest if longest[1] - longest[0] > 1 else None


def compacted(root: Path, snapshot: Snapshot, start: int, shard_size: int, end: int | None = None) -> Manifest:
    """Write the live passages of the segments from ``start`` on, or up to ``end``, as new ones.

    In int8 passages are rounded anew, around the centre of their new segment. A surrogate that covers any of these
    segments is left out.

    Returns:
        the manifest that says so, not yet saved.

    Raises:
        OSError: if the disk fills.
    """
    old = snapshot.manifest
    end = len(old.segments) if end is None else end
    first, last = int(snapshot.starts[start]), int(snapshot.starts[end])
    places = snapshot.live[(snapshot.live >= first) & (snapshot.live < last)]
    segments = list(old.segments[:start])
    for block in places.split(shard_size) if len(places) else ():
        made_of = [[segment.name for segment in old.segments[start:end]], block[0].item(), block[-1].item()]
        name = f"segment-{hashlib.sha256(json.dumps([old.generation, *made_of]).encode()).hexdigest()[:16]}"
        projected = snapshot.gather(block)
        segments.append(
            write_segment(
                root / SEGMENTS / name,
                Int8Rows.of(projected) if old.dtype == "int8" else projected,
                snapshot.gather(block, "unit") if old.unit else None,
                [snapshot.passage(place) for place in block.tolist()],
                lookup=old.lookup,
            )
        )
    whole = torch.zeros(len(places), dtype=torch.bool)
    deleted, generation = torch.cat([snapshot.deleted[:first], whole, snapshot.deleted[last:]]), old.generation + 1
    return replace(
        old,
        generation=generation,
        segments=(*segments, *old.segments[end:]),
        deleted=save_deleted(root, deleted, generation) if bool(deleted.any()) else None,
        surrogate=old.surrogate if _covered(snapshot) <= start else None,
    )


def _covered(snapshot: Snapshot) -> int:
    """How many segments a surrogate covers."""
    surrogate = snapshot.manifest.surrogate
    return 0 if surrogate is None else len(surrogate.files) - 2
