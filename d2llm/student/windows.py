"""Texts beyond the limit as a whole: overlapping windows, each read by itself, whose tokens are pooled together.

The pooling is a softmax over tokens, so that what it makes of some of them, their weighted sum and the logarithm of
their weights, is put together with what it makes of others. Only a batch of windows is in memory at a time.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from d2llm.errors import InputError
from d2llm.merging import is_sharded, takes_turns
from d2llm.side_by_side import side_by_side
from d2llm.texts import CPU_TOKENS, TOKEN_BUDGET, pad

if TYPE_CHECKING:
    from d2llm.student.modeling import D2LLM

#: Texts that are cut into windows at a time.
TEXTS = 64
#: Share of a window that the next one repeats: a quarter.
_OVERLAP = 4


def check(model: "D2LLM") -> None:
    """Make sure that a student can encode in windows.

    Raises:
        InputError: if its tokenizer makes none, or its weights are shared out among processes.
    """
    if not model.tokenizer.is_fast:
        raise InputError("windows: expected a student with a fast tokenizer, which makes them, got a slow one")
    if is_sharded(model):
        raise InputError("windows: expected a student whose weights are on one device, got one shared among processes")


def cut(tokenizer: Any, texts: Sequence[str], length: int) -> tuple[list[list[int]], Tensor]:
    """Token ids of windows of at most ``length``, text after text, and the number of each one's text, (W,) int64.

    Raises:
        InputError: if a text has no token.
    """
    made = tokenizer(
        list(texts),
        truncation=True,
        max_length=length,
        stride=length // _OVERLAP,
        return_overflowing_tokens=True,
        split_special_tokens=True,
    )
    ids, owners = made["input_ids"], torch.tensor(made["overflow_to_sample_mapping"], dtype=torch.int64)
    if empty := [int(owner) for owner, tokens in zip(owners, ids, strict=True) if not tokens]:
        raise InputError(f"texts: the tokenizer makes no token of {texts[empty[0]]!r:.200}")
    return ids, owners


def encode(model: "D2LLM", backbone: Any, texts: Sequence[str], length: int, batch_size: int | None) -> Tensor:
    """Embeddings (n, D) float32 of n texts, on the model's device.

    Args:
        model: the student, in evaluation mode and without gradients.
        backbone: the copy of its LLM to compute with.
        texts: some; what the pooling makes of them, (n, M * H, D), is held.
        length: tokens of a window.
        batch_size: most windows at once; None leaves it to their tokens.

    Raises:
        InputError: if a text has no token.
    """
    device, u = model.device, model.pma.folded_queries()
    ids, owners = cut(model.tokenizer, texts, length)
    rows = max(1, (CPU_TOKENS if device.type == "cpu" else TOKEN_BUDGET) // length)
    rows = rows if batch_size is None else min(rows, batch_size)
    batches = [slice(start, start + rows) for start in range(0, len(ids), rows)]

    def run(batch: slice) -> tuple[Tensor, Tensor, Tensor]:
        tokens, mask = pad(ids[batch], model.tokenizer.pad_token_id)
        hidden = model.hidden(tokens.to(device), mask.to(device), backbone).to(model.head_dtype)
        some, windows = owners[batch].unique_consecutive(return_counts=True)
        lengths = torch.stack([part.sum() for part in mask.sum(1).split(windows.tolist())])
        ends = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).to(device)
        return some, *model.pma.attend(hidden[mask.to(device).bool()], cu_seqlens=ends, u=u)

    pooled, weights = torch.zeros(len(texts), *u.shape, device=device), None
    for some, part, lse in map(run, batches) if takes_turns(model) else side_by_side(run, batches, device):
        if weights is None:
            pooled = pooled.to(part.dtype)
            weights = torch.full((len(texts), len(u)), -torch.inf, device=device, dtype=lse.dtype)
        here = some.to(device)
        total = torch.logaddexp(weights[here], lse)
        before, now = ((each - total).exp().unsqueeze(-1).to(part.dtype) for each in (weights[here], lse))
        pooled[here] = pooled[here] * before + part * now
        weights[here] = total
    return model.pma.outputs(pooled).float()
