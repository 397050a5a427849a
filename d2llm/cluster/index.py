"""An index whose parts are mapped and looked through by actors; all else happens where it is asked."""

import os
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from d2llm.cluster.workers import Workers
from d2llm.index.asking import Asked
from d2llm.index.filters import Filters
from d2llm.index.inputs import check_count
from d2llm.index.manifest import Manifest
from d2llm.index.model import Model
from d2llm.index.parts import InParts, Part, shared_out
from d2llm.index.reader import Reader
from d2llm.index.searching import Found, Searching
from d2llm.index.snapshot import Snapshot, of_newest
from d2llm_kernels import IEM


class ClusterIndex(Reader):
    """One state of an index, the one it was opened at, searched by the actors of a cluster."""

    _workers: Workers
    #: Position at which each actor's part starts (P,).
    _starts: Tensor

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        model: Model | None = None,
        *,
        verify: bool = False,
        workers: int = 2,
        threads: int = 1,
    ) -> Self:
        """Open an index, as ``Index.open`` does, and have actors map its segments.

        Args:
            path: folder of the index, which every machine sees by this path.
            model, verify: as for ``Index.open``.
            workers: actors; no more than there are segments.
            threads: of torch, in each.

        Raises:
            InputError: for less than one worker or thread.
            MissingError, FormatError, MismatchError: as ``Index.open``.
        """
        check_count("workers", workers, 1)
        check_count("threads", threads, 1)
        root = Path(path).absolute()
        # A writer may replace the state before the actors have opened it.
        return of_newest(root, lambda _: cls._started(root, model, verify, workers, threads))

    def close(self) -> None:
        """End the actors."""
        self._workers.close()

    @classmethod
    def _started(cls, root: Path, model: Model | None, verify: bool, workers: int, threads: int) -> Self:
        index = super().open(root, model, verify=verify)
        index._start(workers, threads)
        return index

    def _start(self, workers: int, threads: int) -> None:
        state, head = self._snapshot, deepcopy(self._head).cpu()
        parts = shared_out(state.starts, workers)
        self._starts = state.starts[[part.start for part in parts]]
        self._workers = Workers(_Actor, [(threads, self.path, state.manifest, head, part) for part in parts])
        self._workers.ask("ready")

    def _find(self, asked: Asked, vectors: Tensor, texts: list[str], weight: float) -> tuple[list[Found], float | None]:
        def search(snapshot: Snapshot, head: IEM, task: int, among: Tensor) -> Searching:
            def ask(method: str, *arguments: Any) -> list[Any]:
                return self._workers.ask("look", method, task, asked.filters, *arguments)

            return InParts(snapshot, head, task, among, ask, self._starts)

        return asked.find(self._snapshot, self._head, vectors, texts, weight, search)


class _Actor:
    """A part of an index in a process of its own."""

    def __init__(self, threads: int, path: Path, manifest: Manifest, head: IEM, segments: slice) -> None:
        torch.set_num_threads(threads)
        self._part = Part(path, manifest, head, segments)

    def ready(self) -> None:
        """Nothing, once it is there."""

    def look(self, method: str, task: int, filters: Filters | None, *arguments: Any) -> Any:
        return self._part.look(method, task, filters, *arguments)
