"""Libraries compiled ahead of time: found beside the package, and loaded only if built for the torch that runs."""

import importlib.util
import mmap
import os
import re
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch

_MARKER = re.compile(rb"d2llm_kernels built for torch ([^\n\0]{1,64})\n")


class Extension(NamedTuple):
    """A compiled module of this package: its name, and the environment variable that names another file instead."""

    name: str
    variable: str

    def library(self) -> Path | None:
        """The file, or None where there is none."""
        if named := os.environ.get(self.variable):
            return Path(named)
        # An editable installation may hold libraries for several Pythons.
        folder = Path(__file__).parents[1]
        names = (folder / f"{self.name}{suffix}" for suffix in EXTENSION_SUFFIXES)
        return next(filter(Path.exists, names), None)


def missing(extension: Extension) -> str | None:
    """Why the library cannot be used, or None once it is loaded."""
    path = extension.library()
    if path is None:
        how = "pip install --no-build-isolation builds it"
        return f"the extension {extension.name} is not built in this installation; {how}"
    built, found = _built_for(path), torch.__version__
    if built != found:
        return f"{path.name} was built for torch {built or 'unknown'}, found {found}; install d2llm again"
    try:
        load(extension)
    except (ImportError, OSError) as error:
        return f"{path.name} cannot be loaded: {error}"
    return None


@cache
def load(extension: Extension) -> ModuleType:
    """The extension's module; importing it registers the operators.

    Raises:
        ImportError: if there is none, or it does not fit.
    """
    path = extension.library()
    spec = None if path is None else importlib.util.spec_from_file_location(f"d2llm_kernels.{extension.name}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"d2llm_kernels.{extension.name}: not built")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def _built_for(path: Path) -> str | None:
    """The version of torch that the library's own bytes name; loading it could already fail."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            found = _MARKER.search(content)
            return found[1].decode("ascii", "replace") if found else None
    except (OSError, ValueError):
        return None
