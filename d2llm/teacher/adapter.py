"""An adapter on disk: LoRA weights as peft writes them, and what they were tuned with."""

import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open

from d2llm.errors import FormatError, InputError, MismatchError, MissingError, shown
from d2llm.files import atomic_path, read_json, sha256, write_json
from d2llm.quiet import quiet
from d2llm.teacher.templates import Template

#: In an adapter's folder: the settings it was tuned with, and its weights as peft names them.
SETTINGS = "teacher.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_PEFT_CONFIG = "adapter_config.json"
#: Of peft's settings: those that say nothing of what the weights mean, and those that a tuning sets.
_FREE = ("base_model_name_or_path", "revision", "peft_version")
_TUNED = ("r", "lora_alpha", "target_modules", "task_type", "inference_mode")
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
        FormatError: if its settings are malformed, or one of its files is altered; adapters of before the checksum was
            kept have none.
    """
    for name in (ADAPTER_WEIGHTS, _PEFT_CONFIG):
        if not (folder / name).is_file():
            raise MissingError(f"adapter: {folder / name}: file not found")
    settings, peft = read_json(folder / SETTINGS), read_json(folder / _PEFT_CONFIG)
    if isinstance(settings, dict) and "sha256" in settings and settings.pop("sha256") != _digest(folder, settings):
        raise FormatError(f"{folder}: SHA-256 differs from the record; a file of the adapter is altered")
    try:
        found = AdapterSettings(
            model=peft["base_model_name_or_path"],
            revision=peft.get("revision"),
            base=settings.get("base"),
            prompt=settings.get("prompt", 1),
            templates=tuple(Template(**template) for template in settings.get("templates", ())),
            **{name: settings[name] for name in ("num_layers", "query_length", "passage_length")},
        )
    except (AttributeError, KeyError, TypeError) as error:
        message = f"{SETTINGS} or {_PEFT_CONFIG}: not the settings of an adapter ({error!s:.200})"
        raise FormatError(f"{folder}: {message}") from None
    _check_types(found, folder)
    return found


def _check_types(found: AdapterSettings, folder: Path) -> None:
    for name in ("num_layers", "query_length", "passage_length", "prompt"):
        value = getattr(found, name)
        if type(value) is not int and (value is not None or name != "num_layers"):
            raise FormatError(f"{folder / SETTINGS}: {name}: expected a whole number, got {shown(value)}")
    texts = {"base": found.base, "base_model_name_or_path": found.model, "revision": found.revision}
    for name, value in texts.items():
        if not isinstance(value, str) and (value is not None or name == "base_model_name_or_path"):
            raise FormatError(f"{folder}: {name}: expected text, got {shown(value)}")


def with_adapter(decoder: Any, folder: Path) -> PeftModel:
    """The decoder with the weights of an adapter's folder, or of a checkpoint of its tuning, beside its own.

    Raises:
        FormatError: if the weights are truncated, of another rank than the settings say or not finite, or the settings
            are not such as a tuning writes.
        MismatchError: if they were made for another model.
    """
    rank = _check_lora(folder / _PEFT_CONFIG)
    try:
        with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as file:
            names = set(file.keys())
            _check_weights(file, rank, folder / ADAPTER_WEIGHTS)
        with quiet():
            model = PeftModel.from_pretrained(decoder, os.fspath(folder))
    except SafetensorError as error:
        raise FormatError(f"adapter: {folder / ADAPTER_WEIGHTS}: truncated or altered ({error})") from None
    except (RuntimeError, ValueError) as error:  # Other widths, or none of the modules that it adapts.
        if isinstance(error, FormatError):
            raise
        raise MismatchError(f"adapter: {folder} was not made for this model ({error!s:.1000})") from None
    # peft passes over weights that have no place in the model.
    if names != set(get_peft_model_state_dict(model, save_embedding_layers=False)):
        raise MismatchError(f"adapter: {folder} was made for a model with other layers")
    return model


def _check_lora(path: Path) -> int:
    """The rank of an adapter whose peft settings are such as a tuning writes; others would change what weights mean."""
    peft = read_json(path)
    if not isinstance(peft, dict):
        raise FormatError(f"{path}: expected an object, got {shown(peft)}")
    usual = json.loads(json.dumps(LoraConfig().to_dict(), default=list))
    for name, value in {"peft_type": None, **peft}.items():
        # What another peft adds is off.
        if name not in (*_FREE, *_TUNED) and (value != usual[name] if name in usual else value):
            raise FormatError(f"{path}: {name}: expected {usual.get(name)!r}, got {shown(value)}")
    rank, alpha, modules = peft.get("r"), peft.get("lora_alpha"), peft.get("target_modules")
    if type(rank) is not int or rank < 1:
        raise FormatError(f"{path}: r: expected a whole number of 1 or more, got {shown(rank)}")
    if not isinstance(alpha, (int, float)) or isinstance(alpha, bool) or not abs(alpha) <= sys.float_info.max:
        raise FormatError(f"{path}: lora_alpha: expected a finite number, got {shown(alpha)}")
    if not isinstance(modules, list) or not all(isinstance(name, str) for name in modules):
        raise FormatError(f"{path}: target_modules: expected a list of names, got {shown(modules)}")
    return rank


def _check_weights(file: Any, rank: int, path: Path) -> None:
    """Refuse weights of another rank before a model is built that may be as large, and any that are not finite."""
    for name in file.keys():
        shape, side = file.get_slice(name).get_shape(), 1 if ".lora_B" in name else 0
        if len(shape) != 2 or shape[side] != rank:
            raise FormatError(f"adapter: {path}: {name}: expected rank {rank}, got shape {shape}")
        value = file.get_tensor(name)
        if not value.is_floating_point() or not value.isfinite().all():
            raise FormatError(f"adapter: {path}: {name}: expected finite floating numbers, got {value.dtype}")


def _digest(folder: Path, settings: Mapping[str, Any]) -> str:
    """SHA-256 over all that decides what an adapter says; peft lists the adapted modules in any order."""
    peft = read_json(folder / _PEFT_CONFIG)
    if isinstance(peft, dict):
        peft = {name: value for name, value in peft.items() if name not in _FREE}
        if isinstance(modules := peft.get("target_modules"), list):
            peft["target_modules"] = sorted(map(str, modules))
    about = [settings, peft, sha256(folder / ADAPTER_WEIGHTS)]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


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
        kept = json.loads(json.dumps(kept))
        write_json(temporary / SETTINGS, {**kept, "sha256": _digest(temporary, kept)})
