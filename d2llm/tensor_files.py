"""Tensors in a safetensors file."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from d2llm.errors import FormatError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Tell of a file that cannot be written as the system does, where safetensors has an error of its own.

    Raises:
        OSError: in place of that.
    """
    try:
        yield
    except SafetensorError as error:
        raise OSError(f"{path}: could not be written ({error})") from error


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file.

    Raises:
        OSError: if the file cannot be written.
    """
    with writing(path):
        save_file(dict(tensors), path, metadata)


def read_tensors(path: Path, expected: Mapping[str, tuple[Any, ...]]) -> dict[str, Tensor]:
    """Map tensors of a safetensors file.

    Args:
        expected: of each its sizes, None for any, and its dtype.

    Raises:
        FormatError: if one is absent, or of another shape or dtype.
    """
    try:
        with safe_open(path, "pt") as handle:
            tensors = {name: handle.get_tensor(name) for name in expected}
    except SafetensorError as error:
        raise FormatError(f"{path}: {error}") from None
    for name, tensor in tensors.items():
        found, wanted = (*tensor.shape, tensor.dtype), expected[name]
        if len(found) != len(wanted) or any(w not in (None, f) for f, w in zip(found, wanted, strict=True)):
            raise FormatError(f"{path}: {name}: expected {wanted}, got {found}")
    return tensors


def tensor_names(path: Path) -> list[str]:
    """Names of the tensors in a safetensors file.

    Raises:
        FormatError: if it is none.
    """
    try:
        with safe_open(path, "pt") as handle:
            return list(handle.keys())
    except SafetensorError as error:
        raise FormatError(f"{path}: {error}") from None
