"""Answers of an endpoint, kept one by one as they come, so that none is asked for twice."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from threading import Lock

from d2llm.data.rows import as_number
from d2llm.errors import FormatError
from d2llm.files import make_folder, parse_json
from d2llm.teacher.scores import Pair


class Answers:
    """(yes, no) logits by task and pair of text ids, in a file of lines that grows.

    It is a journal beside shards, which are written whole: a process that is killed leaves at most a last line without
    its end, which counts as not written. Several processes write a file each and read those of all.

    Args:
        file: to write to; it and its folder appear with the first answer.
        others: further files to read.

    Raises:
        FormatError: for a whole line that is no answer.
    """

    def __init__(self, file: Path, others: Iterable[Path] = ()) -> None:
        self.file = file
        self._lock = Lock()
        self._found: dict[tuple[str, Pair], tuple[float, float]] = {}
        for path in {file, *others}:
            if path.exists():
                whole = path.read_bytes().rpartition(b"\n")
                for number, line in enumerate(whole[0].split(b"\n") if whole[1] else (), start=1):
                    self._read(f"{path}:{number}", line)
                if path == file and whole[2]:
                    os.truncate(file, path.stat().st_size - len(whole[2]))

    def get(self, task: str, pair: Pair) -> tuple[float, float] | None:
        """The logits of a pair, None where it was not answered yet."""
        return self._found.get((task, pair))

    def add(self, task: str, pair: Pair, logits: tuple[float, float]) -> None:
        """Keep an answer, in the file first; threads may call it at once."""
        line = json.dumps([task, *pair, *logits], allow_nan=False) + "\n"
        with self._lock:
            make_folder(self.file.parent)
            with open(self.file, "ab") as handle:
                handle.write(line.encode())
            self._found[task, pair] = logits

    def _read(self, place: str, line: bytes) -> None:
        try:
            task, query, passage, *logits = parse_json(line.decode())
            yes, no = map(as_number, logits)
            if yes is None or no is None:
                raise FormatError("its logits are no numbers")
        except (ValueError, TypeError) as error:
            raise FormatError(f"{place}: not an answer of an endpoint ({error}); remove the file") from None
        self._found[task, (query, passage)] = yes, no
