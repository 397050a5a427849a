"""The weights of a student in their file: read by the header first, and sealed with a SHA-256 over all that they mean.

The file's metadata has one entry, a JSON object: ``architecture``, the fields of the configuration that the weights
were made with, and ``sha256`` over those and the tensors. Files of before it was kept have none, and load as they are.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from d2llm.compact import restore
from d2llm.errors import FormatError, MissingError, shown
from d2llm.files import atomic_path, parse_json
from d2llm.student.configuration import FREE, Architecture, D2LLMConfig
from d2llm.tensor_files import write_tensors

WEIGHTS = "model.safetensors"
_METADATA = "d2llm_student"
#: Number types of a file; whole numbers are those of :mod:`d2llm.compact`, which have a scale.
_FLOATS = ("F32", "F16", "BF16")
_STEPS, _SCALE = "I8", ":scale"
_SEALED = sorted(Architecture.__annotations__.keys() - FREE)


@dataclass(frozen=True)
class Header:
    """What a file says before any weight is read."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    #: What the weights were made with; None in a file of before it was kept.
    architecture: dict[str, Any] | None
    sha256: str | None

    @classmethod
    def read(cls, path: Path) -> "Header":
        """The header of a file.

        Raises:
            MissingError: if there is no such file.
            FormatError: if it is truncated or no safetensors file, holds anything but floating numbers, or its seal is
                malformed.
        """
        if not path.is_file():
            raise MissingError(f"{path}: file not found")
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                parts = {name: file.get_slice(name) for name in file.keys()}
                kinds = {name: part.get_dtype() for name, part in parts.items()}
                shapes = {name: tuple(part.get_shape()) for name, part in parts.items()}
        except SafetensorError as error:
            raise FormatError(f"{path}: not a whole safetensors file ({error})") from None
        for name, kind in kinds.items():
            if kind not in _FLOATS and not (kind == _STEPS and name + _SCALE in kinds):
                raise FormatError(f"{path}: {name}: expected {', '.join(_FLOATS)}, got {kind}")
        return cls(path, shapes, *_seal(path, metadata))

    def check(self, config: D2LLMConfig) -> None:
        """Compare sizes with those that a configuration asks for, before a model is built that may be as large.

        Raises:
            FormatError: naming the first that differs.
        """
        expected: dict[str, tuple[int, ...]] = {"iem.linear1.bias": (config.iem_hidden,)}
        low_rank = [name for name in self.shapes if ".lora_A." in name]
        if bool(low_rank) != bool(config.lora_r):
            raise FormatError(f"{self.path}: expected LoRA of rank {config.lora_r}, got {len(low_rank)} such weights")
        for name in low_rank:
            if not name.endswith(_SCALE):
                expected[name] = (config.lora_r, *self.shapes[name][1:])
        for name, shape in expected.items():
            if name in self.shapes and self.shapes[name] != shape:
                raise FormatError(f"{self.path}: {name}: expected shape {shape}, got {self.shapes[name]}")

    def check_architecture(self, config: D2LLMConfig, source: Path) -> None:
        """Make sure that a configuration, read from ``source``, is the one that the weights were made with.

        Raises:
            FormatError: naming the first field that differs.
        """
        for name, made_with in (self.architecture or {}).items():
            if (found := getattr(config, name, None)) != made_with:
                raise FormatError(
                    f"{source}: {name}: expected {shown(made_with)}, with which {self.path.name} was saved, got "
                    f"{shown(found)}; the file is altered, or belongs to other weights"
                )


def write_weights(path: Path, weights: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> None:
    """Write weights and their seal, atomically.

    Args:
        path: the file.
        weights: CPU tensors by name.
        config: the fields of the configuration that they belong to.

    Raises:
        OSError: if the file cannot be written; a former one is left as it was.
    """
    architecture = {name: config[name] for name in _SEALED}
    about = {"architecture": architecture, "sha256": _digest(architecture, weights)}
    with atomic_path(path) as target:
        # One entry, as safetensors writes several in any order and the same student shall give the same bytes.
        write_tensors(weights, target, {_METADATA: json.dumps(about, sort_keys=True)})


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The weights in a student's file, in whatever floating number type it holds them.

    Raises:
        MissingError, FormatError: as :meth:`Header.read`; FormatError too for an altered file, NaN or infinity.
    """
    header = Header.read(path)
    try:
        stored = load_file(path)
        if header.sha256 is not None and header.sha256 != _digest(header.architecture, stored):
            raise FormatError(f"{path}: SHA-256 differs from the record; the file is altered")
        weights = restore(stored)
    except (SafetensorError, KeyError, RuntimeError) as error:
        raise FormatError(f"{path}: not a whole safetensors file ({error})") from None
    for name, value in weights.items():
        if not value.isfinite().all():
            raise FormatError(f"{path}: {name}: expected finite values, got NaN or infinity")
    return weights


def _seal(path: Path, metadata: Mapping[str, str]) -> tuple[dict[str, Any] | None, str | None]:
    if metadata.keys() <= {"format"}:
        return None, None
    try:
        about = parse_json(metadata[_METADATA])
        architecture, digest = about["architecture"], about["sha256"]
        if not isinstance(architecture, dict) or not isinstance(digest, str):
            raise TypeError("expected an object and a text")
    except (FormatError, KeyError, TypeError) as error:
        raise FormatError(f"{path}: malformed metadata ({error!s:.200})") from None
    return architecture, digest


def _digest(architecture: Mapping[str, Any] | None, weights: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(architecture, sort_keys=True).encode())
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
