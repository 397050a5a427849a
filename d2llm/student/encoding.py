"""Texts to embeddings, returned in the order given."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from d2llm.errors import InputError
from d2llm.texts import batches_by_length, check_texts, pad, tokenize

if TYPE_CHECKING:
    from d2llm.student.modeling import D2LLM

KINDS = ("passage", "query")
_OUTPUTS = ("numpy", "torch")
#: Texts from which on a progress bar is shown unless told otherwise.
_BAR_FROM = 256


def encode(
    model: "D2LLM",
    texts: Sequence[str],
    kind: str = "passage",
    batch_size: int = 64,
    show_progress: bool | None = None,
    convert_to: str = "numpy",
    normalize: bool = False,
    dtype: torch.dtype | None = None,
) -> Any:
    """Embeddings (N, D) float32 of N texts, in their order, as an array or a tensor.

    Args:
        model: the student; it computes in evaluation mode and is put back as it was.
        texts: N non-empty texts; longer ones are cut.
        kind: ``passage`` or ``query``: which length limit of the configuration applies.
        batch_size: most texts at once.
        show_progress: None shows a bar for more than a few hundred texts.
        convert_to: ``numpy``, or ``torch`` for a tensor on the model's device.
        normalize: divide by the L2 norm (for cosine similarity; the interaction module wants it off).
        dtype: autocast the computation to it, such as ``torch.bfloat16``; None computes as the weights are.

    Raises:
        InputError: for an empty list, an empty text, an unknown ``kind`` or ``convert_to``, a batch size below 1.
    """
    if kind not in KINDS:
        raise InputError(f"kind: expected one of {KINDS}, got {kind!r}")
    if convert_to not in _OUTPUTS:
        raise InputError(f"convert_to: expected one of {_OUTPUTS}, got {convert_to!r}")
    if batch_size < 1:
        raise InputError(f"batch_size: expected at least 1, got {batch_size}")
    texts = check_texts(texts)
    limit = model.config.query_length if kind == "query" else model.config.passage_length
    ids = tokenize(model.tokenizer, texts, limit)
    device = model.device
    autocast = torch.autocast(device.type, dtype) if dtype is not None else nullcontext()
    result = torch.empty(len(ids), model.dim, device=device)
    show = len(texts) >= _BAR_FROM if show_progress is None else show_progress
    was_training = model.training
    model.eval()
    try:
        bar = tqdm(total=len(ids), desc=f"encode {kind}", unit="text", disable=not show)
        with torch.inference_mode(), autocast, bar:
            u = model.pma.folded_queries()
            for rows in batches_by_length([len(text) for text in ids], batch_size):
                tokens, mask = pad([ids[row] for row in rows], model.tokenizer.pad_token_id)
                result[torch.tensor(rows, device=device)] = model.embed(tokens.to(device), mask.to(device), u)
                bar.update(len(rows))
    finally:
        model.train(was_training)
    if normalize:
        result = torch.nn.functional.normalize(result, dim=1)
    return result if convert_to == "torch" else result.cpu().numpy()


def cosine_similarity(queries: np.ndarray | Tensor, passages: np.ndarray | Tensor) -> np.ndarray:
    """Cosine of every pair: (Nq, D) and (Np, D) -> (Nq, Np) float32; a zero vector has cosine 0.

    Raises:
        InputError: if the widths differ, or for NaN or infinity.
    """
    q, p = (np.asarray(x.cpu() if isinstance(x, Tensor) else x, dtype=np.float32) for x in (queries, passages))
    if q.ndim != 2 or p.ndim != 2 or q.shape[1] != p.shape[1]:
        raise InputError(f"passages: expected shapes (Nq, D) and (Np, D) of one width D, got {q.shape} and {p.shape}")
    for name, x in (("queries", q), ("passages", p)):
        if not np.isfinite(x).all():
            raise InputError(f"{name}: expected finite numbers, got NaN or infinity")
    return _unit(q) @ _unit(p).T


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(np.float32).tiny)
