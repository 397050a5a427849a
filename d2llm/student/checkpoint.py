"""A student on disk: config.json and the trained weights; the base model is named, or copied on request."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from d2llm.errors import FormatError, InputError, MissingError
from d2llm.files import atomic_path, read_json, write_json
from d2llm.student.configuration import D2LLMConfig

if TYPE_CHECKING:
    from d2llm.student.modeling import D2LLM

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
#: Folder of the copied base model, inside the student's folder.
BASE = "base"
_HEAD_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def save(
    model: "D2LLM",
    path: str | os.PathLike[str],
    head_dtype: torch.dtype | None = None,
    save_base: bool = False,
    **_: Any,
) -> None:
    """Write a student's folder: config.json and model.safetensors with LoRA and heads.

    Each file replaces its predecessor atomically; other files of the folder are left alone.

    Args:
        model: the student.
        path: folder to write.
        head_dtype: number type on disk, such as ``torch.float16`` for a folder half the size; None keeps every bit.
        save_base: also copy the base model and its tokenizer, so that the folder needs nothing else.
        **_: options of ``PreTrainedModel.save_pretrained`` that a student has no use for.

    Raises:
        InputError: for another number type.
    """
    if head_dtype is not None and head_dtype not in _HEAD_DTYPES:
        raise InputError(f"head_dtype: expected one of {_HEAD_DTYPES}, got {head_dtype}")
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    weights = {k: v.to("cpu", head_dtype or v.dtype).contiguous() for k, v in model.trainable_state().items()}
    with atomic_path(path / WEIGHTS) as target:
        save_file(weights, target, metadata={"format": "pt"})
    config = {**model.config.to_dict(), "architectures": ["D2LLM"]}
    if save_base:
        _save_base(model, path / BASE)
        config["base_model"] = BASE
    write_json(path / CONFIG, config)


def _save_base(model: "D2LLM", path: Path) -> None:
    """The base as a plain transformers folder, without LoRA."""
    state = {
        name.replace(".base_layer.", "."): value
        for name, value in model.backbone.state_dict().items()
        if ".lora_" not in name
    }
    with atomic_path(path) as target:
        model.backbone.save_pretrained(target, state_dict=state)
        model.tokenizer.save_pretrained(target)


def load(cls: type["D2LLM"], path: str | os.PathLike[str], dtype: torch.dtype | None = None, **changes: Any) -> "D2LLM":
    """Read a student's folder; LoRA and heads come back bit for bit.

    Args:
        cls: the model class.
        path: folder written by :func:`save`.
        dtype: number type of the frozen base instead of the configured one; LoRA and heads stay float32.
        **changes: fields of the configuration to replace, such as ``base_model`` or ``kernels_backend``.

    Raises:
        MissingError: if the folder, one of its files or the base model is missing.
        FormatError: if a file is malformed, or its weights do not fit the configuration.
        InputError: for an unknown field.
    """
    path = Path(path)
    if not path.is_dir():
        raise MissingError(f"{path}: no such folder; expected a student with {CONFIG} and {WEIGHTS}")
    fields = read_json(path / CONFIG)
    if not isinstance(fields, dict) or fields.get("model_type") != D2LLMConfig.model_type:
        raise FormatError(f"{path / CONFIG}: expected a configuration with model_type {D2LLMConfig.model_type!r}")
    unknown = changes.keys() - D2LLMConfig().to_dict().keys()
    if unknown:
        raise InputError(f"from_pretrained: unknown options {sorted(unknown)}")
    fields.update(changes)
    if dtype is not None:
        fields["base_dtype"] = str(dtype).removeprefix("torch.")
    weights = read_weights(path / WEIGHTS)
    config = D2LLMConfig.from_dict(fields)
    if config.base_model == BASE and (path / BASE).is_dir():
        config.base_model = str((path / BASE).resolve())
    model = cls.assemble(config)
    load_weights(model, weights, path / WEIGHTS)
    return model


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file.

    Raises:
        MissingError: if there is no such file.
        FormatError: if it is truncated or no safetensors file.
    """
    if not path.is_file():
        raise MissingError(f"{path}: file not found")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise FormatError(f"{path}: not a whole safetensors file ({error})") from None


def load_weights(model: "D2LLM", weights: dict[str, torch.Tensor], source: Path) -> None:
    """Copy LoRA and heads into ``model``, all of them or, on an error, none.

    Raises:
        FormatError: if a name is missing or left over, or a shape differs.
    """
    expected = model.trainable_state()
    for problem, names in (
        ("missing", expected.keys() - weights.keys()),
        ("unexpected", weights.keys() - expected.keys()),
    ):
        if names:
            raise FormatError(f"{source}: {len(names)} {problem} weights, such as {min(names)!r}")
    for name, value in expected.items():
        if weights[name].shape != value.shape:
            raise FormatError(
                f"{source}: {name}: expected shape {tuple(value.shape)}, got {tuple(weights[name].shape)}"
            )
    for name, value in expected.items():
        value.copy_(weights[name])
