"""An index built by several processes: each encodes every N-th segment, and a build of all finds them there.

A segment is named by the digest of what it is made from, and encoded for itself. The build that joins them therefore
encodes nothing, reads one segment at a time, and makes what one process would have made.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from d2llm.errors import InputError
from d2llm.index.building import existing, plan, same
from d2llm.index.inputs import Passages, check_count
from d2llm.index.intake import Intake, cut
from d2llm.index.model import Model
from d2llm.index.writer import Share, named, share_lock, write_shards


def build_share(
    model: Model,
    passages: Passages | Iterator[Any],
    path: str | os.PathLike[str],
    share: Share,
    *,
    ids: Sequence[str] | None = None,
    metadata: Sequence[Mapping[str, Any]] | None = None,
    dtype: str = "bfloat16",
    keep_vectors: bool = True,
    shard_size: int = 16384,
    batch_size: int | None = None,
    progress: bool = True,
    overwrite: bool = False,
    windows: bool = False,
) -> int:
    """Write one process's share of an index's segments; how many passages it has.

    When every share is there, ``Index.build`` with the same arguments finds them and makes the index. It encodes what
    is missing, so that a share that failed costs time only. A share that was stopped goes on when called again.

    Args:
        model, passages, path, ids, metadata, dtype, keep_vectors, shard_size, batch_size, progress, overwrite,
            windows: as for ``Index.build``, the same in every process, all passages included.
        share: (I, N): segments I, I + N, I + 2 N and so on, counted from 0.

    Raises:
        InputError: as ``Index.build``; for a share that is none of N; while another process builds the same share or
            the index itself.
        OSError: if the disk fills; what was finished stays.
    """
    number, count = share
    if not 0 <= number < count:
        raise InputError(f"share: expected (I, N) with 0 <= I < N, got {share}")
    check_count("shard_size", shard_size, 1)
    if batch_size is not None:
        check_count("batch_size", batch_size, 1)
    root = Path(path)
    layout = plan(model, dtype, texts=True, unit=keep_vectors, windows=windows)
    parts = cut(Intake(passages, ids, metadata, None, layout.dim), shard_size)
    with share_lock(root, share):
        old = existing(root, overwrite)
        if old is not None and not overwrite:
            if not same(old, layout, (name for name, _ in named(parts, layout))):
                raise InputError(f"path: {root} holds an index of other content; pass overwrite=True to replace it")
            return sum(segment.rows for segment in old.segments[number::count])
        written = write_shards(
            root, layout, model, parts, batch_size=batch_size, progress=progress, total=None, share=share
        )
    return sum(segment.rows for segment in written)
