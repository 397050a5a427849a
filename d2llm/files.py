"""Writing that is either whole or absent: a temporary file beside the target, then a rename."""

import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from d2llm.errors import FormatError, InputError, MissingError

_CHUNK = 1 << 20


@contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``target`` that is renamed onto it when the block succeeds.

    The block may create a file or a folder there. On any error, Ctrl-C included, the temporary
    path is removed and ``target`` is left as it was. An existing folder is replaced as a whole.
    Files may be read by whom the umask lets, also where a library wrote them for their owner alone.
    A process killed in the moment between the two renames that this takes leaves the old folder
    in a hidden one beside ``target``.

    Raises:
        InputError: if ``target`` names no file or folder of its own, such as ``.``.
        MissingError: if the block succeeds without creating anything.
        OSError: if the disk is full or the path cannot be written.
    """
    target = Path(target)
    if target.name in ("", ".."):
        raise InputError(f"target: expected the path of a file or folder to write, got {os.fspath(target)!r}")
    make_folder(target.parent)
    # mkdtemp gives a private name, so that two writers never share a temporary path.
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    temporary, aside = scratch / target.name, scratch / ".replaced"
    try:
        yield temporary
        if not temporary.exists():
            raise MissingError(f"{target}: nothing was written to its temporary path")
        _sync(temporary, _mode(scratch / ".mode"))
        # A rename replaces a file by itself, but no folder that has something in it.
        if temporary.is_dir() and os.path.lexists(target):
            os.replace(target, aside)
        os.replace(temporary, target)
        _sync_folder(target.parent)
    finally:
        if os.path.lexists(aside) and not os.path.lexists(target):
            os.replace(aside, target)
        shutil.rmtree(scratch, ignore_errors=True)


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it that are missing, each on the disk before what comes into it.

    Raises:
        OSError: if it cannot be made, or is a file.
    """
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)


def _mode(unused: Path) -> int:
    """The permissions of new files, which the system tells of a file alone without changing them for other threads."""
    unused.touch()
    return stat.S_IMODE(unused.stat().st_mode)


def _sync(path: Path, mode: int) -> None:
    """Permit at least ``mode`` on a file, or on all that a folder holds, and flush it, before the rename shows it."""
    if path.is_dir() and not path.is_symlink():
        for inner in path.iterdir():
            _sync(inner, mode)
        _sync_folder(path)
    elif path.is_file():
        # safetensors writes files that none but their owner may read; an index is served by other users too.
        found = stat.S_IMODE(path.stat().st_mode)
        if mode & ~found and not path.is_symlink():
            path.chmod(found | mode)
        with open(path, "rb") as handle:
            os.fsync(handle.fileno())


def _sync_folder(folder: Path) -> None:
    """Flush the names in ``folder``, where the system has folders that can be flushed."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def json_text(value: Any) -> str:
    """``value`` as ``write_json`` writes it."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def write_json(target: str | os.PathLike[str], value: Any) -> None:
    """Write ``value`` as indented JSON, atomically.

    Raises:
        TypeError: if ``value`` holds something that JSON has no form for; ``target`` is left as it was.
    """
    with atomic_path(target) as path:
        path.write_text(json_text(value), encoding="utf-8")


def parse_json(text: str) -> Any:
    """What a JSON text holds.

    Raises:
        FormatError: if it is not valid JSON, or has a name twice in an object, of which one value would be lost.
    """
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"not valid JSON ({error})") from None


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r:.200} stands twice in an object")
    return made


#: One for all: to make one takes as long as to read a short line.
_DECODER = json.JSONDecoder(object_pairs_hook=_distinct)


def read_json(source: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Raises:
        MissingError: if there is no such file.
        FormatError: if it is not valid JSON, or has a name twice in an object.
    """
    source = Path(source)
    if not source.is_file():
        raise MissingError(f"{source}: file not found")
    try:
        return parse_json(source.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise FormatError(f"{source}: not valid JSON ({error})") from None
    except FormatError as error:
        raise FormatError(f"{source}: {error}") from None


def sha256(source: str | os.PathLike[str]) -> str:
    """Hex SHA-256 of a file's bytes.

    Raises:
        MissingError: if there is no such file.
    """
    if not Path(source).is_file():
        raise MissingError(f"{os.fspath(source)}: file not found")
    digest = hashlib.sha256()
    with open(source, "rb") as handle:
        while chunk := handle.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
