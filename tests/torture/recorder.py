"""What a disk must hold, by the calls that a program makes.

A recorder stands behind the calls of ``os`` by which files are synced, renamed and removed, and keeps the content of a
file as of its last fsync, and the names in a folder as of the folder's.
"""

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_CALLS = ("fsync", "replace", "rename", "unlink", "rmdir", "mkdir")

#: What a folder holds: by name, the inode of a file or folder.
_Names = dict[str, int]


class Disk:
    """What a disk holds of a folder, now and for sure."""

    def __init__(self, root: Path) -> None:
        self.root = root
        # Open files keep their inodes, whose numbers would be used again.
        self._open: dict[int, int] = {}
        self.names, self.contents = self._scan()
        self.sure_names, self.sure_contents = dict(self.names), dict(self.contents)

    def close(self) -> None:
        for handle in self._open.values():
            os.close(handle)

    def look(self) -> None:
        """Take in what the calls since the last look have changed."""
        self.names, self.contents = self._scan()

    def synced(self, number: int) -> None:
        """A file or folder is on the disk as it is now."""
        if number in self.names:
            self.sure_names[number] = self.names[number]
        elif number in self.contents:
            self.sure_contents[number] = self.contents[number]

    def after(self, kind: str, generator: random.Random) -> dict[str, bytes | None]:
        """Files and folders (None) by path, as a loss of power leaves them.

        Args:
            kind: ``least``, nothing but what is sure; ``names``, all names, and what is sure of their contents;
                ``any``, of each folder and file what is sure, or what is there, or a part of it.
            generator: which.
        """
        found: dict[str, bytes | None] = {}

        def walk(number: int, path: str) -> None:
            live, sure = self.names.get(number, {}), self.sure_names.get(number, {})
            use = {"least": sure, "names": live, "any": generator.choice((live, sure))}[kind]
            for name, inner in use.items():
                below = f"{path}/{name}" if path else name
                if inner in self.contents or inner in self.sure_contents:
                    found[below] = self._content(inner, kind, generator)
                else:
                    found[below] = None
                    walk(inner, below)

        walk(self.root.stat().st_ino, "")
        return found

    def _content(self, number: int, kind: str, generator: random.Random) -> bytes:
        sure = self.sure_contents.get(number, b"")
        live = self.contents.get(number, sure)
        if kind == "any" and sure != live:
            return generator.choice((sure, live, live[: generator.randrange(len(live) + 1)]))
        return sure

    def _scan(self) -> tuple[dict[int, _Names], dict[int, bytes]]:
        names: dict[int, _Names] = {}
        contents: dict[int, bytes] = {}
        for folder, folders, files in os.walk(self.root):
            inodes = {name: self._keep(os.path.join(folder, name)) for name in (*folders, *files)}
            names[self._keep(folder)] = inodes
            for name in files:
                contents[inodes[name]] = Path(folder, name).read_bytes()
        return names, contents

    def _keep(self, path: str) -> int:
        number = os.stat(path).st_ino
        if number not in self._open:
            self._open[number] = os.open(path, os.O_RDONLY)
        return number


@contextmanager
def recorded(disk: Disk, each: Callable[[], None]) -> Iterator[None]:
    """Show a disk every call that counts, then do ``each``."""
    real = {name: getattr(os, name) for name in _CALLS}

    def recording(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            result = real[name](*arguments, **options)
            disk.look()
            if name == "fsync":
                disk.synced(os.fstat(arguments[0]).st_ino)
            each()
            return result

        return call

    for name in _CALLS:
        setattr(os, name, recording(name))
    try:
        yield
    finally:
        for name in _CALLS:
            setattr(os, name, real[name])
