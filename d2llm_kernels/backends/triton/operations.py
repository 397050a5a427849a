"""The operations on Triton's kernels, as a backend gives them.

Triton launches on the current device, whichever the tensors are on; the functions here make it that of the tensors.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

from d2llm_kernels.backends.triton import (
    in_batch,
    interaction_backward,
    interaction_forward,
    lora,
    pool_backward,
    pool_forward,
)

_P = ParamSpec("_P")
_R = TypeVar("_R")


def _on_its_device(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """The function under the device of its first tensor; all its tensors are on one."""

    @wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with torch.cuda.device_of(next(_tensors(args))):
            return function(*args, **kwargs)

    return call


def _tensors(values: Iterable[object]) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, tuple):
            yield from _tensors(value)


attn_pool = _on_its_device(pool_forward.attn_pool)
attn_pool_backward = _on_its_device(pool_backward.attn_pool_backward)
iem_pairs = _on_its_device(interaction_forward.iem_pairs)
iem_pairs_backward = _on_its_device(interaction_backward.iem_pairs_backward)
iem_scores = _on_its_device(interaction_forward.iem_scores)
iem_scores_backward = _on_its_device(interaction_backward.iem_scores_backward)
iem_topk = _on_its_device(interaction_forward.iem_topk)
in_batch_terms = _on_its_device(in_batch.in_batch_terms)
in_batch_terms_backward = _on_its_device(in_batch.in_batch_terms_backward)
lora_linear = _on_its_device(lora.lora_linear)
lora_linear_backward = _on_its_device(lora.lora_linear_backward)
