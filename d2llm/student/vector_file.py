"""Embeddings on their way to a file: mapped into memory, written in parts, and taken up again after a stop."""

import io
import os
from pathlib import Path
from types import TracebackType

import numpy as np
from filelock import FileLock, Timeout
from torch import Tensor

from d2llm.errors import BusyError, D2LLMError, InputError
from d2llm.files import read_json, write_json


class VectorFile:
    """An array (N, D) float32 that becomes an .npy file when all its rows are there.

    Until then it lies beside its place, in a hidden file. A record, ``FILE.json``, says what it holds and how many rows
    are on the disk.

    Args:
        path: the file.
        shape: (N, D).
        key: what decides the rows; under another one nothing that is there is taken up.

    Raises:
        InputError: for another name than ``*.npy``.
        BusyError: on entering, while another process writes the file.
    """

    def __init__(self, path: str | os.PathLike[str], shape: tuple[int, int], key: str) -> None:
        self.path = Path(path)
        if self.path.suffix != ".npy":
            raise InputError(f"out: expected the name of an .npy file, got {os.fspath(path)!r}")
        self._partial = self.path.with_name(f".{self.path.name}.partial")
        self._record = self.path.with_name(f"{self.path.name}.json")
        self._lock = FileLock(self.path.with_name(f".{self.path.name}.lock"), blocking=False)
        self._shape, self._key = shape, key
        #: Rows that are on the disk.
        self.done = 0

    def __enter__(self) -> "VectorFile":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout:
            raise BusyError(f"out: {self.path} is being written by another process") from None
        self.done = self._found()
        if self._partial.exists():
            self._rows = np.lib.format.open_memmap(self._partial, "r+")
        elif self.done < len(self):
            self._record.unlink(missing_ok=True)
            self._rows = np.lib.format.open_memmap(self._partial, "w+", np.float32, self._shape)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None and self._partial.exists():
                del self._rows
                os.replace(self._partial, self.path)
        finally:
            self._lock.release()

    def __len__(self) -> int:
        return self._shape[0]

    def write(self, first: int, vectors: Tensor) -> None:
        """Put rows in their place, on the disk before the record says so."""
        self.done = first + len(vectors)
        self._rows[first : self.done] = vectors.cpu().numpy()
        self._rows.flush()
        write_json(self._record, {"key": self._key, "rows": self.done})

    def read(self) -> np.ndarray:
        """The whole file, mapped into memory."""
        found: np.ndarray = np.load(self.path, mmap_mode="r")
        return found

    def _found(self) -> int:
        """Rows that an earlier run has left; what it left of others is removed."""
        started = self._partial.exists()
        try:
            record = read_json(self._record)
            rows, same = record["rows"], record["key"] == self._key
            whole = self._is_array(self._partial if started else self.path)
            if same and whole and type(rows) is int and 0 <= rows <= len(self) and (started or rows == len(self)):
                return rows
        except (D2LLMError, OSError, KeyError, TypeError):
            pass
        self._partial.unlink(missing_ok=True)
        return 0

    def _is_array(self, path: Path) -> bool:
        """Whether a file has the header and the size of the array, which numpy does not have to make sense of."""
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": self._shape})
        size = header.tell() + 4 * self._shape[0] * self._shape[1]
        with open(path, "rb") as file:
            return path.stat().st_size == size and file.read(header.tell()) == header.getvalue()
