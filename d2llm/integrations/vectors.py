"""Scores of embeddings as other libraries hand them over: tensors, arrays or lists, one vector or many."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from d2llm.errors import InputError
from d2llm_kernels import IEM

#: One embedding (D,) or N of them (N, D).
Embeddings: TypeAlias = Tensor | np.ndarray | Sequence[Tensor] | Sequence[np.ndarray]

#: Passages that are brought to the module's device at once.
_PASSAGES_AT_ONCE = 1 << 16


def score_all(iem: IEM, queries: Embeddings, passages: Embeddings, task: int) -> Tensor:
    """IEM logits (N1, N2) of every query with every passage, on the module's device.

    A graph is kept where the embeddings have one, as a cosine would keep it: other scores go straight into numpy.

    Args:
        iem: the interaction module.
        queries: N1 of them, or one.
        passages: N2 of them, or one.
        task: number of a branch.

    Raises:
        InputError: for vectors of another width.
    """
    q, p = _matrix(queries, iem, "embeddings1"), _matrix(passages, iem, "embeddings2")
    with _graph_of(q, p):
        q = _ready(q, iem)
        return torch.cat([iem.score_all(q, _ready(part, iem), task) for part in p.split(_PASSAGES_AT_ONCE)], dim=1)


def score_pairs(iem: IEM, queries: Embeddings, passages: Embeddings, task: int) -> Tensor:
    """IEM logits (N,) of the pairs ``(queries[i], passages[i])``; arguments as for :func:`score_all`.

    Raises:
        InputError: for vectors of another width, or more of one than of the other.
    """
    q, p = _matrix(queries, iem, "embeddings1"), _matrix(passages, iem, "embeddings2")
    if len(q) != len(p):
        raise InputError(f"embeddings2: expected {len(q)}, as there are queries, got {len(p)}")
    with _graph_of(q, p):
        scores: Tensor = iem(_ready(q, iem), _ready(p, iem), task)
    return scores


def _matrix(embeddings: Embeddings, iem: IEM, name: str) -> Tensor:
    """Rows of whatever holds them; a lone vector is one row."""
    if isinstance(embeddings, Tensor):
        rows = embeddings
    elif isinstance(embeddings, np.ndarray):
        rows = torch.from_numpy(embeddings)
    else:
        rows = torch.stack([torch.as_tensor(each) for each in embeddings])
    rows = rows[None] if rows.dim() == 1 else rows
    if rows.dim() != 2 or rows.shape[1] != iem.dim:
        raise InputError(f"{name}: expected (N, {iem.dim}) or ({iem.dim},), got {tuple(rows.shape)}")
    return rows


def _ready(rows: Tensor, iem: IEM) -> Tensor:
    """On the module's device, in its number type."""
    return rows.to(iem.linear1.weight.device, iem.linear1.weight.dtype)


def _graph_of(*embeddings: Tensor) -> torch.set_grad_enabled:
    return torch.set_grad_enabled(torch.is_grad_enabled() and any(each.requires_grad for each in embeddings))
