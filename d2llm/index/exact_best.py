"""The exact best passages of queries, kept on the disk as they are found: over millions each takes seconds."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from d2llm.errors import FormatError
from d2llm.files import atomic_path
from d2llm.tensor_files import read_tensors, write_tensors

# Queries after which the file is written anew.
_EVERY = 16


def exact_best(path: Path, count: int, find: Callable[[int], Tensor], progress: bool) -> Tensor:
    """What ``find`` gives for each query, (count, ...) int64; those that an earlier run found are not searched again.

    Args:
        path: the file, named by all that the results depend on; the caller removes it.
        find: the number of a query -> a tensor of int64, of one shape for all.
        progress: show a bar.

    Raises:
        OSError: if the disk fills; what was finished stays.
    """
    found = _earlier(path)[:count]
    with tqdm(total=count, initial=len(found), desc="certify", unit="query", disable=not progress) as bar:
        for number in range(len(found), count):
            found.append(find(number))
            bar.update()
            if len(found) % _EVERY == 0 or len(found) == count:
                with atomic_path(path) as scratch:
                    write_tensors({"best": torch.stack(found)}, scratch)
    return torch.stack(found)


def _earlier(path: Path) -> list[Tensor]:
    if not path.is_file():
        return []
    try:
        return list(read_tensors(path, {"best": (None, None, None, torch.int64)})["best"].clone())
    except FormatError:  # A disk that lost a part of it: search again.
        return []
