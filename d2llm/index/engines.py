"""Engines that find a surrogate's largest inner products without looking at every row: flat, IVF and HNSW of faiss.

Rows lie in faiss as the whole numbers that they are, so that its products are exact. What an engine misses counts as
missed where searches are certified through it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from d2llm.errors import FormatError, InputError, shown
from d2llm.requirements import require

#: "scan" looks at every row, in this package's own kernel; the others are faiss's.
ENGINES = ("scan", "flat", "ivf", "hnsw")
# An inverted file has as many lists as the square root of the rows, is trained on so many rows of each, and looks into
# one list of so many. Each node of a graph has so many neighbours; so many nodes are visited, which is all it can find.
_TRAINED, _SHARE, _NEIGHBOURS, _VISITED = 64, 8, 32, 2048


class Engine(Protocol):
    """Finds rows by inner product, perhaps not all of the best."""

    def search(self, queries: Tensor, count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Products and numbers of what is found for each query (Nq, R) int8, both (Nq, n), n at most ``count``.

        Best first; -1 as a number stands for none. A search for fewer finds the first of these.
        """
        ...


def check_engine(engine: str) -> str:
    """The name of an engine whose package is there.

    Raises:
        InputError: for another name.
        ModuleNotFoundError: saying how to install what it needs.
    """
    if engine not in ENGINES:
        raise InputError(f"engine: expected one of {ENGINES}, got {shown(engine)}")
    if engine != "scan":
        require("faiss", "faiss")
    return engine


def write_engine(engine: str, rows: Sequence[Tensor], path: Path) -> None:
    """Put rows (n, R) int8, chunk after chunk, into an engine other than "scan", and write it.

    Raises:
        OSError: if the file cannot be written.
    """
    import faiss

    width, count = rows[0].shape[1], sum(map(len, rows))
    exact, product = faiss.ScalarQuantizer.QT_8bit_direct_signed, faiss.METRIC_INNER_PRODUCT
    if engine == "ivf":
        lists = max(1, round(count**0.5))
        made = faiss.IndexIVFScalarQuantizer(faiss.IndexFlatIP(width), width, lists, exact, product, False)
        made.nprobe = max(1, lists // _SHARE)
        step = max(1, count // (lists * _TRAINED))
        made.train(np.concatenate([_wide(chunk[::step]) for chunk in rows]))
    else:
        graph = engine == "hnsw"
        made = (
            faiss.IndexHNSWSQ(width, exact, _NEIGHBOURS, product)
            if graph
            else faiss.IndexScalarQuantizer(width, exact, product)
        )
        made.train(_wide(rows[0]))
    for chunk in rows:
        made.add(_wide(chunk))
    try:
        faiss.write_index(made, str(path))
    except RuntimeError as error:
        raise OSError(f"{path}: could not be written ({error})") from None


class FaissEngine:
    """An engine that was written, read again.

    Args:
        path: its file.
        count, width: rows that it must hold, and R.

    Raises:
        FormatError: if it is none, or holds others.
        ModuleNotFoundError: saying how to install faiss.
    """

    def __init__(self, path: Path, count: int, width: int) -> None:
        require("faiss", "faiss")
        import faiss

        try:
            self._index: Any = faiss.read_index(str(path))
        except RuntimeError as error:
            raise FormatError(f"{path}: not an index of faiss ({error})") from None
        if (self._index.ntotal, self._index.d) != (count, width):
            raise FormatError(f"{path}: expected {count} rows of {width}, got {self._index.ntotal} of {self._index.d}")
        self._graph = isinstance(self._index, faiss.IndexHNSW)
        if self._graph:
            self._index.hnsw.efSearch = _VISITED

    def search(self, queries: Tensor, count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """As ``Engine.search`` says."""
        import faiss

        faiss.omp_set_num_threads(torch.get_num_threads())
        # What a graph finds depends on how many it is asked for: always the same.
        asked = min(_VISITED if self._graph else count, self._index.ntotal)
        values, numbers = self._index.search(_wide(queries), asked)
        return values[:, :count], numbers[:, :count]


def _wide(rows: Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(rows.float().numpy())
