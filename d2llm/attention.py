"""Attention of the LLM on a CPU, a few texts at a time: nothing of its square is kept, and all products are large.

torch's own kernel on a CPU multiplies head by head in small blocks; its backward pass in bfloat16 takes three times as
long as these products do. It stays where it serves: on GPUs, for very long texts and for what is written nowhere here.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

#: Name under which transformers finds it.
NAME = "d2llm"
# Weights that are made at once: they stay in a core's cache.
_AT_ONCE = 1 << 20
# Weights of one text from which on torch's own kernel takes less time and memory.
_LONG = 1 << 24


def use(model: Any) -> None:
    """Let a model attend by this module, if torch's own attention could serve it; else leave it as it is."""
    try:
        model.set_attn_implementation("sdpa")
    except ValueError:
        return
    model.set_attn_implementation(NAME)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers calls: query (B, H, L, C), key (B, G, S, C), value (B, G, S, C') -> (B, L, H, C').

    Args:
        module: the attention layer that calls; ``is_causal`` is asked of it where None is given.
        attention_mask: (B or 1, 1, L, S), True where a token is seen, or None for all or, if causal, all before.
    """
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    causal = causal and attention_mask is None and query.shape[2] > 1
    other = any(kwargs.get(name) is not None for name in ("softcap", "position_bias")) or kwargs.get(
        "output_attentions"
    )
    if dropout or other or not _fits(query, key, attention_mask, causal):
        given: tuple[Tensor, None] = ALL_ATTENTION_FUNCTIONS["sdpa"](
            module, query, key, value, attention_mask, dropout, scaling, is_causal, **kwargs
        )
        return given
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (each.to(torch.get_autocast_dtype("cpu")) for each in (query, key, value))
    if causal:
        attention_mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril_()[None, None]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    with torch.autocast("cpu", enabled=False):
        return _attend(query, key, value, attention_mask, scale).transpose(1, 2), None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def _fits(query: Tensor, key: Tensor, mask: Tensor | None, causal: bool) -> bool:
    """Whether it is for this module: on a CPU, of one square a head, and not so long that the square counts."""
    known = mask is None or (mask.dtype == torch.bool and mask.dim() == 4 and mask.shape[1] == 1)
    square = query.shape[2] == key.shape[2] or not causal
    return query.device.type == "cpu" and known and square and 0 < query.shape[1:3].numel() * key.shape[2] <= _LONG


@torch.library.custom_op("d2llm::attention", mutates_args=())
def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """softmax(scale q kᵀ) v, (B, H, L, C')."""
    out = query.new_empty(*query.shape[:3], value.shape[-1])
    for rows in _slices(query, key):
        q = _grouped(query[rows], key) * scale
        weights = _weights(q, key[rows], _of(mask, rows), query.shape[2])
        out[rows] = (weights.to(value.dtype) @ value[rows]).view(out[rows].shape)
    return out


@_attend.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    return query.new_empty(*query.shape[:3], value.shape[-1])


@torch.library.custom_op("d2llm::attention_backward", mutates_args=())
def _attend_backward(
    dout: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, out: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value; the weights are made again from q and k."""
    dquery, dkey, dvalue = (torch.empty_like(each) for each in (query, key, value))
    for rows in _slices(query, key):
        q, slope = _grouped(query[rows], key) * scale, _grouped(dout[rows], key)
        weights = _weights(q, key[rows], _of(mask, rows), query.shape[2])
        dvalue[rows] = weights.to(value.dtype).transpose(2, 3) @ slope
        # A row's gradients less their weighted mean, which is the product of the output with its own gradient.
        mean = (slope.to(weights.dtype) * _grouped(out[rows], key)).sum(-1, keepdim=True)
        dscores = (slope @ value[rows].transpose(2, 3)).to(weights.dtype).sub_(mean).mul_(weights).to(key.dtype)
        dquery[rows] = (dscores @ key[rows]).mul_(scale).view(query[rows].shape)
        dkey[rows] = dscores.transpose(2, 3) @ q
    return dquery, dkey, dvalue


@_attend_backward.register_fake
def _(
    dout: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, out: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4], output)
    ctx.scale = inputs[4]


def _differentiate(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    return *_attend_backward(dout, *ctx.saved_tensors, ctx.scale), None, None


_attend.register_autograd(_differentiate, setup_context=_save)


def _slices(query: Tensor, key: Tensor) -> list[slice]:
    """Texts that are handled together."""
    step = max(1, _AT_ONCE // (query.shape[1:3].numel() * key.shape[2]))
    return [slice(start, start + step) for start in range(0, query.shape[0], step)]


def _grouped(heads: Tensor, key: Tensor) -> Tensor:
    """(b, H, L, C) as (b, G, H/G L, C): the heads that share a key's head make one product with it."""
    batch, _, _, width = heads.shape
    return heads.reshape(batch, key.shape[1], -1, width)


def _of(mask: Tensor | None, rows: slice) -> Tensor | None:
    return mask if mask is None or mask.shape[0] == 1 else mask[rows]


def _weights(query: Tensor, key: Tensor, mask: Tensor | None, length: int) -> Tensor:
    """softmax(q kᵀ), (b, G, H/G L, S), in float32 or wider, for a grouped query that is scaled already."""
    scores = query @ key.transpose(2, 3)
    if mask is not None:
        batch, groups, rows, keys = scores.shape
        square = scores.view(batch, groups, rows // length, length, keys)
        square.masked_fill_(~mask[:, :, None], torch.finfo(scores.dtype).min)
    return torch.softmax(scores, -1, dtype=torch.promote_types(scores.dtype, torch.float32))
