"""Texts encoded by actors side by side: what ``Index.build`` takes as a model, and does the rest with as ever."""

import os
from collections.abc import Sequence

import numpy as np
import torch

from d2llm.cluster.workers import Workers
from d2llm.index.inputs import check_count
from d2llm.student import D2LLM

# Pieces for each actor, so that none waits long for one that is slower.
_PIECES = 4


class ClusterEncoder:
    """A student on every actor.

    ``Index.build`` and ``append`` take it for the student: segments are named, written and found again as without it,
    so that a build that was stopped goes on, and a worker that dies costs the piece that it had.

    Args:
        student: folder of the student, by the same path on every machine.
        workers: actors.
        threads: of torch, in each.

    Raises:
        InputError: for less than one worker or thread.
        MissingError, FormatError: as ``D2LLM.from_pretrained``.
    """

    #: Texts that a build hands over at a time: a whole segment, as a rule.
    texts_at_once = 1 << 16

    def __init__(self, student: str | os.PathLike[str], workers: int = 2, threads: int = 1) -> None:
        check_count("workers", workers, 1)
        check_count("threads", threads, 1)
        self._student = D2LLM.from_pretrained(student)
        self.iem, self.config = self._student.iem, self._student.config
        self._workers = Workers(_Encoding, [(os.fspath(student), threads)] * workers)

    def fingerprint(self) -> str:
        """The student's."""
        return self._student.fingerprint()

    def encode(
        self,
        texts: Sequence[str],
        *,
        kind: str,
        batch_size: int | None,
        show_progress: bool = False,
        windows: bool = False,
    ) -> np.ndarray:
        """Vectors (N, D) float32, as ``D2LLM.encode`` gives them; the last bits depend on which texts share a batch.

        Raises:
            MissingError: if a worker dies whenever it is asked; what the student raises.
        """
        size = -(-len(texts) // (_PIECES * len(self._workers)))
        pieces = [texts[start : start + size] for start in range(0, len(texts), size)]
        started = [
            self._workers.start(number % len(self._workers), "encode", piece, kind, batch_size, windows)
            for number, piece in enumerate(pieces)
        ]
        return np.concatenate(self._workers.answers(started))

    def close(self) -> None:
        """End the actors."""
        self._workers.close()


class _Encoding:
    """The student in one actor."""

    def __init__(self, student: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self._student = D2LLM.from_pretrained(student)

    def encode(self, texts: Sequence[str], kind: str, batch_size: int | None, windows: bool) -> np.ndarray:
        vectors: np.ndarray = self._student.encode(
            texts, kind=kind, batch_size=batch_size, show_progress=False, windows=windows
        )
        return vectors
