"""An adapter on disk: LoRA weights as peft writes them, and what they were tuned with."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open

from d2llm.errors import FormatError, InputError, MismatchError, MissingError
from d2llm.files import atomic_path, read_json, write_json
from d2llm.quiet import quiet

if TYPE_CHECKING:
    from d2llm.teacher.model import Teacher

#: In an adapter's folder: the settings it was tuned with, and its weights as peft names them.
SETTINGS = "teacher.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def read_settings(folder: Path) -> dict[str, Any]:
    """What an adapter was tuned with.

    Raises:
        MissingError: if a file of it is missing.
        FormatError: if its settings are malformed.
    """
    settings = read_json(folder / SETTINGS)
    expected = ("num_layers", "query_length", "passage_length")
    if not isinstance(settings, dict) or any(name not in settings for name in expected):
        raise FormatError(f"{folder / SETTINGS}: expected an object with {', '.join(expected)}")
    for name in (ADAPTER_WEIGHTS, "adapter_config.json"):
        if not (folder / name).is_file():
            raise MissingError(f"adapter: {folder / name}: file not found")
    return settings


def with_adapter(decoder: Any, folder: Path) -> PeftModel:
    """The decoder with the weights of an adapter's folder, or of a checkpoint of its tuning, beside its own.

    Raises:
        FormatError: if the weights are truncated or altered.
        MismatchError: if they were made for another model.
    """
    try:
        with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as file:
            names = set(file.keys())
        with quiet():
            model = PeftModel.from_pretrained(decoder, os.fspath(folder))
    except SafetensorError as error:
        raise FormatError(f"adapter: {folder / ADAPTER_WEIGHTS}: truncated or altered ({error})") from None
    except (RuntimeError, ValueError) as error:  # Other widths, or none of the modules that it adapts.
        raise MismatchError(f"adapter: {folder} was not made for this model ({error})") from None
    # peft passes over weights that have no place in the model.
    if names != set(get_peft_model_state_dict(model, save_embedding_layers=False)):
        raise MismatchError(f"adapter: {folder} was made for a model with other layers")
    return model


def save_adapter(teacher: "Teacher", folder: str | os.PathLike[str], dtype: torch.dtype = torch.float32) -> None:
    """Write a tuned teacher's LoRA adapter and its settings, atomically; float16 halves the file.

    Raises:
        InputError: if the teacher has no adapter.
    """
    if not isinstance(teacher.decoder, PeftModel):
        raise InputError("teacher: expected one with an adapter")
    weights = {name: value.to(dtype) for name, value in teacher.decoder.state_dict().items() if "lora_" in name}
    for adapter in teacher.decoder.peft_config.values():
        # By its name, not by where this machine keeps it.
        adapter.base_model_name_or_path = teacher.origin["model"]
    with atomic_path(folder) as temporary:
        teacher.decoder.save_pretrained(os.fspath(temporary), state_dict=weights, save_embedding_layers=False)
        # peft adds a form of a model card that nobody has filled in.
        (temporary / "README.md").unlink(missing_ok=True)
        write_json(temporary / SETTINGS, {"num_layers": teacher.origin["num_layers"], **teacher.limits})
