"""An adapter on disk: LoRA weights as peft writes them, and what they were tuned with."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open

from d2llm.errors import FormatError, InputError, MismatchError, MissingError
from d2llm.files import atomic_path, read_json, write_json
from d2llm.quiet import quiet
from d2llm.teacher.templates import Template

#: In an adapter's folder: the settings it was tuned with, and its weights as peft names them.
SETTINGS = "teacher.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_PEFT_CONFIG = "adapter_config.json"
#: In the folder of a tuning: its adapter.
ADAPTER = "adapter"


@dataclass(frozen=True)
class AdapterSettings:
    """What an adapter was tuned with."""

    #: The LLM by the name it was given by, and its revision on a hub.
    model: str
    revision: str | None
    #: Fingerprint of the LLM's weights; None for an adapter that was written before it was kept.
    base: str | None
    num_layers: int | None
    query_length: int
    passage_length: int
    #: Of the tasks that it was tuned for; none for an adapter that was written before they were kept.
    templates: tuple[Template, ...]
    #: How prompts were tokenised: 1 for an adapter that was written before it was kept.
    prompt: int

    def check_base(self, model: str, base: str | None) -> None:
        """Make sure that an LLM is the one that the adapter was tuned on.

        Args:
            model: its name.
            base: fingerprint of its weights; None where it has none, and the name must do.

        Raises:
            MismatchError: if it is another one.
        """
        same = model == self.model if base is None else base == self.base
        if self.base is not None and not same:
            raise MismatchError(
                f"model: the adapter was tuned on {self.model!r} (weights {self.base}), got {model!r} "
                f"(weights {base or 'in float16, which tells them by name alone'}); leave it out, or give that one"
            )

    def join(self, given: Sequence[Template] | None) -> tuple[Template, ...]:
        """The templates of the tuning, and those given for other tasks.

        Raises:
            MismatchError: if one that is given asks for a tuned task in other words.
        """
        tuned = {template.task: template for template in self.templates}
        for template in given or ():
            known = tuned.setdefault(template.task, template)
            if replace(template, name=known.name) != known:
                raise MismatchError(
                    f"template: the adapter was tuned with {known.name!r} for {known.task}, got {template.name!r}; "
                    "leave the template out, or tune with it"
                )
        return tuple(tuned.values())


def find_adapter(folder: str | os.PathLike[str]) -> Path:
    """The folder of an adapter, given by itself or by the folder of its tuning.

    Raises:
        MissingError: if there is none.
    """
    for path in (Path(folder), Path(folder) / ADAPTER):
        if (path / SETTINGS).is_file():
            return path
    raise MissingError(f"adapter: {folder}: expected a folder with {SETTINGS}, such as d2llm teach tune writes")


def read_settings(folder: Path) -> AdapterSettings:
    """What an adapter was tuned with.

    Raises:
        MissingError: if a file of it is missing.
        FormatError: if its settings are malformed.
    """
    for name in (ADAPTER_WEIGHTS, _PEFT_CONFIG):
        if not (folder / name).is_file():
            raise MissingError(f"adapter: {folder / name}: file not found")
    settings, peft = read_json(folder / SETTINGS), read_json(folder / _PEFT_CONFIG)
    try:
        return AdapterSettings(
            model=peft["base_model_name_or_path"],
            revision=peft.get("revision"),
            base=settings.get("base"),
            prompt=settings.get("prompt", 1),
            templates=tuple(Template(**template) for template in settings.get("templates", ())),
            **{name: settings[name] for name in ("num_layers", "query_length", "passage_length")},
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise FormatError(f"{folder}: {SETTINGS} or {_PEFT_CONFIG}: not the settings of an adapter ({error})") from None


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


def save_adapter(
    decoder: Any, settings: AdapterSettings, folder: str | os.PathLike[str], dtype: torch.dtype = torch.float32
) -> None:
    """Write the LoRA adapter of a tuned decoder and what it was tuned with, atomically; float16 halves the file.

    Raises:
        InputError: if the decoder has no adapter.
    """
    if not isinstance(decoder, PeftModel):
        raise InputError("decoder: expected one with an adapter")
    weights = {name: value.to(dtype) for name, value in decoder.state_dict().items() if "lora_" in name}
    for adapter in decoder.peft_config.values():
        # By its name, not by where this machine keeps it.
        adapter.base_model_name_or_path = settings.model
        adapter.revision = settings.revision
    kept = {name: value for name, value in asdict(settings).items() if name not in ("model", "revision")}
    with atomic_path(folder) as temporary:
        decoder.save_pretrained(os.fspath(temporary), state_dict=weights, save_embedding_layers=False)
        # peft adds a form of a model card that nobody has filled in.
        (temporary / "README.md").unlink(missing_ok=True)
        write_json(temporary / SETTINGS, kept)
