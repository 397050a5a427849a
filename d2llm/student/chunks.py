"""The texts of a training step to embeddings, some of like length at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from d2llm.errors import InputError
from d2llm.merging import takes_turns
from d2llm.student import chunks_side_by_side
from d2llm.student.cached_gradients import cached
from d2llm.texts import TOKEN_BUDGET, even_batches

if TYPE_CHECKING:
    from d2llm.student.modeling import D2LLM

#: Padded tokens of a chunk where a step on a CPU is not told how many texts: enough for products at full speed.
_CPU_TOKENS = 2048
#: Tokens for every thread from which on threads have chunks of their own: of fewer, each would mostly read weights.
_THREAD_TOKENS = 256


@dataclass(frozen=True)
class Texts:
    """N texts as one of three: their embeddings, or hidden states or token ids with a mask."""

    #: (N, D).
    vectors: Tensor | None
    #: (N, L, D).
    states: Tensor | None
    #: (N, L) int64, right-padded.
    ids: Tensor | None
    #: (N, L), 1 for real tokens.
    mask: Tensor | None

    @property
    def given(self) -> bool:
        """Whether there are any."""
        return any(each is not None for each in (self.vectors, self.states, self.ids))


def embeddings(model: "D2LLM", sides: Sequence[Texts], size: int | None, cache: bool) -> list[Tensor]:
    """Embeddings (N, D) of each of some sides, such as queries and passages; token ids of all share chunks.

    Args:
        model: the student.
        sides: what is embedded.
        size: texts of a chunk; None takes as many as make some thousand tokens.
        cache: keep no activations, see :mod:`d2llm.student.cached_gradients`.

    Raises:
        InputError: for a side without texts, or without their mask.
    """
    tables = [(side.ids, side.mask) for side in sides if side.vectors is None and side.states is None]
    tokens = [(ids, mask) for ids, mask in tables if ids is not None and mask is not None]
    width = max((ids.shape[1] for ids, _ in tokens), default=0)
    together: list[Tensor] = []
    if tokens:
        ids, mask = (
            torch.cat([pad(each, (0, width - each.shape[1])) for each in column])
            for column in zip(*tokens, strict=True)
        )
        together = list(_chunked(model, ids, mask, size, cache).split([len(ids) for ids, _ in tokens]))
    found = []
    for side in sides:
        if side.vectors is not None:
            found.append(side.vectors)
        elif side.mask is None or not side.given:
            raise InputError("forward: expected token ids or states with their mask, or vectors")
        else:
            found.append(
                together.pop(0) if side.states is None else _chunked(model, side.states, side.mask, size, cache)
            )
    return found


def _chunked(model: "D2LLM", texts: Tensor, mask: Tensor, size: int | None, cache: bool) -> Tensor:
    """Embeddings of token ids (N, L) or of states (N, L, D)."""
    lengths: list[int] = mask.sum(dim=1).tolist()
    budget = max(lengths) * size if size else _CPU_TOKENS if texts.device.type == "cpu" else TOKEN_BUDGET
    embed, threads = (model.embed, _threads(model, sum(lengths))) if texts.dim() == 2 else (model.pool, 1)
    plan = even_batches(lengths, threads, size, budget)
    chunks = [(texts[rows, : lengths[rows[0]]], mask[rows, : lengths[rows[0]]]) for rows in plan]
    weights = [p for module in (model.backbone, model.pma) for p in module.parameters() if p.requires_grad]
    if threads > 1:
        found = chunks_side_by_side.embedded(embed, chunks, weights, cache)
    else:
        found = torch.cat([cached(embed, chunk, weights) if cache else embed(*chunk) for chunk in chunks])
    order = torch.tensor([row for rows in plan for row in rows], device=texts.device)
    return found[order.argsort()]


def _threads(model: "D2LLM", tokens: int) -> int:
    """Chunks that are computed at once, each in one thread; processes that share weights take turns."""
    threads = torch.get_num_threads()
    if model.device.type != "cpu" or not torch.is_grad_enabled() or tokens < threads * _THREAD_TOKENS:
        return 1
    return 1 if model.chunks_in_turn or takes_turns(model) or not chunks_side_by_side.fits(model) else threads
