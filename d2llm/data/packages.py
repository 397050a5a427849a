"""Published packages as training text: fetched once by pip, without what they depend on, and never installed."""

import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from d2llm.files import atomic_path

#: Seconds that the download of one package may take.
_PATIENCE = 120


def fetch_packages(requirements: Iterable[str], folder: Path) -> tuple[list[Path], list[str]]:
    """Unpack the wheels of packages below ``folder``, which keeps them.

    Args:
        requirements: each a name and a version, such as ``requests==2.34.2``.
        folder: where they lie, each in a folder named as it was asked for.

    Returns:
        The folders, in order, and the requirements that could not be had: no network, or no wheel for this Python.
    """
    found, absent = [], []
    for requirement in tqdm(list(requirements), desc="packages", unit="package"):
        place = folder / requirement
        if place.is_dir() or _fetch(requirement, place):
            found.append(place)
        else:
            absent.append(requirement)
    return found, absent


def _fetch(requirement: str, place: Path) -> bool:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    with tempfile.TemporaryDirectory() as scratch:
        try:
            subprocess.run(
                [*command, "--dest", scratch, requirement], check=True, capture_output=True, timeout=_PATIENCE
            )
        except (subprocess.SubprocessError, OSError):
            return False
        (wheel,) = Path(scratch).iterdir()
        place.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(place) as target, zipfile.ZipFile(wheel) as archive:
            archive.extractall(target, [name for name in archive.namelist() if name.endswith(".py")])
    return True
