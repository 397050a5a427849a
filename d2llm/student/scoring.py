"""Pairs of texts to logits of a student's interaction module, each distinct text encoded once."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from d2llm.errors import InputError
from d2llm.tasks import ASYM, task_index

if TYPE_CHECKING:
    from d2llm.student.modeling import D2LLM


@torch.inference_mode()
def score(
    model: "D2LLM",
    queries: Sequence[str],
    passages: Sequence[str],
    task: str | int | Sequence[str | int] = ASYM,
    *,
    batch_size: int | None = None,
    show_progress: bool | None = None,
    dtype: torch.dtype | None = None,
) -> np.ndarray:
    """IEM logits (N,) float32 of the pairs ``(queries[i], passages[i])``.

    Args:
        queries: N texts.
        passages: N texts.
        task: ``asym``, ``sym`` or a list of N of them.
        batch_size, show_progress, dtype: as for ``encode``.

    Raises:
        InputError: for lists of different lengths, an empty text or an unknown task.
    """
    if len(queries) != len(passages):
        raise InputError(f"passages: expected {len(queries)} as there are queries, got {len(passages)}")
    branches = [task_index(task)] * len(queries) if isinstance(task, (str, int)) else [task_index(t) for t in task]
    if len(branches) != len(queries):
        raise InputError(f"task: expected one or {len(queries)} of them, got {len(branches)}")
    q = _encode_distinct(model, queries, "query", batch_size, show_progress, dtype)
    p = _encode_distinct(model, passages, "passage", batch_size, show_progress, dtype)
    q, p = q.to(model.head_dtype), p.to(model.head_dtype)
    return model.iem(q, p, torch.tensor(branches, device=q.device)).float().cpu().numpy()


def rank(
    model: "D2LLM",
    query: str,
    passages: Sequence[str],
    top_k: int | None = None,
    task: str | int = ASYM,
    *,
    batch_size: int | None = None,
    show_progress: bool | None = None,
    dtype: torch.dtype | None = None,
) -> list[dict[str, Any]]:
    """Passages by falling IEM logit, as ``CrossEncoder.rank`` of sentence-transformers gives them.

    Args:
        query: the text that is asked.
        passages: N texts.
        top_k: how many are returned; None returns all.
        task: ``asym`` or ``sym``.
        batch_size, show_progress, dtype: as for ``encode``.

    Returns:
        A list of ``{"corpus_id", "score", "text"}``; among equal scores the lower ``corpus_id`` comes first.

    Raises:
        InputError: for no passages, an empty text, an unknown task or ``top_k`` beyond the passages.
    """
    k = len(passages) if top_k is None else top_k
    if not 1 <= k <= len(passages):
        raise InputError(f"top_k: expected 1 to {len(passages)} (the passages given), got {top_k}")
    scores = model.score(
        [query] * len(passages),
        passages,
        task,
        batch_size=batch_size,
        show_progress=show_progress,
        dtype=dtype,
    )
    best = np.argsort(-scores, kind="stable")[:k]
    return [{"corpus_id": int(i), "score": float(scores[i]), "text": passages[i]} for i in best]


def _encode_distinct(
    model: "D2LLM",
    texts: Sequence[str],
    kind: str,
    batch_size: int | None,
    show_progress: bool | None,
    dtype: torch.dtype | None,
) -> Tensor:
    """Embeddings of every text, each distinct one encoded once."""
    rows = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    encoded = model.encode(list(rows), kind, batch_size, show_progress, "torch", dtype=dtype)
    return encoded[torch.tensor([rows[text] for text in texts], dtype=torch.int64, device=encoded.device)]
