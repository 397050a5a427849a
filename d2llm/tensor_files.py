"""Tensors in a safetensors file."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


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
