"""A student on disk: config.json and the trained weights; the base model is named, or copied on request.

Of a base that was trained, whose weights are the student's, configuration and tokenizer lie beside them.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.tensor import DTensor
from transformers.utils.quantization_config import QuantizationConfigMixin
from typing_extensions import Unpack

from d2llm import merging
from d2llm.backbone import Loading
from d2llm.compact import shrink
from d2llm.errors import FormatError, InputError
from d2llm.files import atomic_path, make_folder, read_json, write_json
from d2llm.student import hub
from d2llm.student.configuration import FIELDS, Architecture, D2LLMConfig, check_fields
from d2llm.student.weights import WEIGHTS, Header, read_weights, write_weights

if TYPE_CHECKING:
    from d2llm.student.modeling import D2LLM

CONFIG = "config.json"
#: Folder of the copied base model, inside the student's folder.
BASE = "base"
_HEAD_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int8)


def save(
    model: "D2LLM",
    save_directory: str | os.PathLike[str],
    is_main_process: bool = True,
    state_dict: Mapping[str, torch.Tensor] | None = None,
    max_shard_size: int | str | None = None,
    *,
    head_dtype: torch.dtype | None = None,
    save_base: bool = False,
    merged: bool = False,
) -> None:
    """Write a student's folder: config.json and model.safetensors with LoRA, or the trained base, and heads.

    Each file replaces its predecessor atomically; other files of the folder are left alone.

    Args:
        model: the student.
        save_directory: folder to write.
        is_main_process: transformers' Trainer says False on all processes but one; nothing is then written. All of them
            call, since a model that FSDP has sharded (``fully_shard``) is gathered here.
        state_dict: weights by name to write in place of the model's own, as the Trainer gathers them from shards; those
            of a frozen base are left out.
        max_shard_size: what ``push_to_hub`` passes on; a student is one small file whatever it says.
        head_dtype: number type on disk: ``torch.float16`` for a folder half the size, ``torch.int8`` for a quarter (see
            :mod:`d2llm.compact`); None keeps every bit.
        save_base: also copy the base model and its tokenizer, so that the folder needs nothing else.
        merged: copy the base with LoRA merged into it: for use without training, where the weights are too large for
            the copy that encoding makes. What is loaded has no LoRA, and another fingerprint.

    Raises:
        InputError: for another number type, for ``merged`` beside ``state_dict`` or of a model that is sharded, for a
            base that has no name and is not saved too, or for one to be saved that is in fewer bits.
    """
    if not (model.config.base_model or model.config.train_base or save_base or merged):
        raise InputError("save_base: expected True, since the base has no name by which it could be loaded again")
    if merged and (state_dict is not None or merging.is_sharded(model)):
        raise InputError("merged: expected a model whose weights are all its own and here; gather them first")
    if (merged or save_base) and merging.is_quantised(model.backbone):
        raise InputError("save_base, merged: expected a base of floating weights, got a quantised one; load it without")
    if head_dtype is not None and head_dtype not in _HEAD_DTYPES:
        raise InputError(f"head_dtype: expected one of {_HEAD_DTYPES}, got {head_dtype}")
    own = model.trainable_state() if state_dict is None else own_weights(state_dict.items(), model.config.train_base)
    # Every process takes part in gathering shards.
    own = {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in own.items()}
    if not is_main_process:
        return
    path = Path(save_directory)
    make_folder(path)
    if merged:
        own = {name: value for name, value in own.items() if ".lora_" not in name}
    if head_dtype == torch.int8:
        weights = shrink(own)
    else:
        weights = {name: value.to("cpu", head_dtype or value.dtype).contiguous() for name, value in own.items()}
    config = {**model.config.to_dict(), "architectures": ["D2LLM"]}
    if merged:
        config["lora_r"] = 0
    write_weights(path / WEIGHTS, weights, config)
    if save_base or merged or model.config.train_base:
        _save_base(model, path / BASE, merged)
    if save_base or merged:
        config["base_model"] = BASE
    write_json(path / CONFIG, config)


def own_weights(weights: Iterable[tuple[str, torch.Tensor]], train_base: bool) -> dict[str, torch.Tensor]:
    """Those of named weights that are the student's own and not its frozen base's, as views."""
    return {name: value.detach() for name, value in weights if is_own(name, train_base)}


def is_own(name: str, train_base: bool) -> bool:
    """Whether a weight of this name is the student's own: heads, LoRA, and the base where that is trained."""
    return train_base or not name.startswith("backbone.") or ".lora_" in name


def _save_base(model: "D2LLM", path: Path, merged: bool) -> None:
    """The base as a plain transformers folder, LoRA merged or without it, and no weights that are the student's own."""
    backbone = model.backbone
    if merged:
        backbone = merging.merged(backbone, backbone.get_input_embeddings().weight.dtype)
    with atomic_path(path) as target:
        if model.config.train_base:
            backbone.config.save_pretrained(target)
        else:
            state = {
                name.replace(".base_layer.", "."): value
                for name, value in backbone.state_dict().items()
                if ".lora_" not in name
            }
            backbone.save_pretrained(target, state_dict=state)
        model.tokenizer.save_pretrained(target)


def load(
    cls: type["D2LLM"],
    path: str | os.PathLike[str],
    dtype: torch.dtype | str | None = None,
    base_model: str | os.PathLike[str] | None = None,
    *,
    revision: str | None = None,
    token: bool | str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    attn_implementation: str | None = None,
    device_map: str | Mapping[str, int | str] | None = None,
    quantization_config: QuantizationConfigMixin | None = None,
    config: D2LLMConfig | None = None,
    trust_remote_code: bool | None = None,
    adapter_kwargs: Mapping[str, Any] | None = None,
    **changes: Unpack[Architecture],
) -> "D2LLM":
    """Read a student's folder; LoRA and heads come back bit for bit.

    Args:
        cls: the model class.
        path: folder written by :func:`save`, or ``user/repository`` on the hub.
        dtype: number type of the frozen base, or its name, instead of the configured one (None, ``auto``); LoRA and
            heads stay float32.
        base_model: decoder instead of the configured one, such as the same one at another place.
        revision, token, cache_dir, local_files_only: of the student on the hub, as ``snapshot_download`` takes them.
        attn_implementation, device_map, quantization_config: of the decoder, see :class:`d2llm.backbone.Loading`; the
            heads lie where its inputs do.
        config: in place of the folder's, as ``AutoModel`` passes it; the weights must have been made with it.
        trust_remote_code, adapter_kwargs: what ``AutoModel`` passes to every model; not read.
        **changes: fields of the configuration to replace, by name, such as ``kernels_backend``.

    Raises:
        MissingError: if the folder or repository, one of its files or the base model is missing.
        FormatError: if a file is malformed, or its weights do not fit the configuration.
        InputError: for an unknown field.
    """
    check_fields(changes)
    path = hub.find(path, (CONFIG, WEIGHTS, f"{BASE}/*"), revision, token, cache_dir, local_files_only)
    if config is None:
        config = _read_config(path / CONFIG)
    attn_implementation = attn_implementation or config.asked_attention
    header = Header.read(path / WEIGHTS)
    header.check_architecture(config, path / CONFIG)
    given: dict[str, Any] = dict(changes)
    if base_model is not None:
        given = {"base_revision": None, **given, "base_model": os.fspath(base_model)}
    if dtype not in (None, "auto"):
        given["base_dtype"] = str(dtype).removeprefix("torch.")
    config = D2LLMConfig(**{name: getattr(config, name) for name in FIELDS} | given)
    header.check(config)
    weights = read_weights(path / WEIGHTS)
    # A base inside the folder or beside it is named from there.
    beside = path / config.base_model
    if base_model is None and config.base_model and not os.path.isabs(config.base_model) and beside.is_dir():
        config.base_model = str(beside.resolve())
    frame = path / BASE if config.train_base and base_model is None and (path / BASE).is_dir() else None
    loading = Loading(config.base_revision, attn_implementation, device_map, quantization_config)
    model = cls.assemble(config, frame=frame and frame.resolve(), loading=loading)
    load_weights(model, weights, path / WEIGHTS)
    return model


def _read_config(path: Path) -> D2LLMConfig:
    """The configuration of a student; what transformers writes beside its fields is left aside."""
    fields = read_json(path)
    if not isinstance(fields, dict) or fields.get("model_type") != D2LLMConfig.model_type:
        raise FormatError(f"{path}: expected a configuration with model_type {D2LLMConfig.model_type!r}")
    try:
        return D2LLMConfig(**{name: value for name, value in fields.items() if name in FIELDS})
    except InputError as error:
        raise FormatError(f"{path}: {error}") from None


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
