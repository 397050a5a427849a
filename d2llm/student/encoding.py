"""Texts to embeddings: checked, sorted by length, batched by a token budget, returned in the order given."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from d2llm.errors import InputError

if TYPE_CHECKING:
    from d2llm.student.modeling import D2LLM

KINDS = ("passage", "query")
_OUTPUTS = ("numpy", "torch")
#: Padded tokens in a batch of ``encode``, whatever ``batch_size`` allows: bounds the memory of long texts.
TOKEN_BUDGET = 8192
#: Texts from which on a progress bar is shown unless told otherwise.
_BAR_FROM = 256
#: Texts tokenized at once.
_TOKENIZE_CHUNK = 4096


def check_texts(texts: Sequence[str], name: str = "texts") -> list[str]:
    """The texts as a list.

    Raises:
        InputError: naming the first one that is not a text or is only white space; for a lone string; for none at all.
    """
    if isinstance(texts, str):
        raise InputError(f"{name}: expected a list of texts, got one text; put it in a list")
    texts = list(texts)
    if not texts:
        raise InputError(f"{name}: expected at least one text, got none")
    for i, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"{name}[{i}]: expected a non-empty text, got {text!r}")
    return texts


def tokenize(tokenizer: Any, texts: Sequence[str], max_length: int) -> list[list[int]]:
    """Token ids of every text, cut on the right to ``max_length``; no padding.

    Raises:
        InputError: if a text has no token.
    """
    ids: list[list[int]] = []
    for start in range(0, len(texts), _TOKENIZE_CHUNK):
        chunk = list(texts[start : start + _TOKENIZE_CHUNK])
        ids += tokenizer(chunk, truncation=True, max_length=max_length, padding=False)["input_ids"]
    for text, tokens in zip(texts, ids, strict=True):
        if not tokens:
            raise InputError(f"texts: the tokenizer makes no token of {text!r}")
    return ids


def pad(ids: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Right-padded (N, L) int64 ids and (N, L) int64 mask."""
    width = max(map(len, ids))
    tokens = torch.full((len(ids), width), pad_id, dtype=torch.int64)
    mask = torch.zeros((len(ids), width), dtype=torch.int64)
    for row, text in enumerate(ids):
        tokens[row, : len(text)] = torch.tensor(text)
        mask[row, : len(text)] = 1
    return tokens, mask


def batches_by_length(lengths: Sequence[int], batch_size: int, token_budget: int = TOKEN_BUDGET) -> Iterator[list[int]]:
    """Indices in batches of similar length, longest first, so that memory peaks at the start.

    Each batch has at most ``batch_size`` rows and, unless it is one row, at most ``token_budget`` padded tokens.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    start = 0
    while start < len(order):
        rows = max(1, min(batch_size, token_budget // max(1, lengths[order[start]])))
        yield order[start : start + rows]
        start += rows


def encode(
    model: "D2LLM",
    texts: Sequence[str],
    kind: str = "passage",
    batch_size: int = 64,
    show_progress: bool | None = None,
    convert_to: str = "numpy",
    normalize: bool = False,
    dtype: torch.dtype | None = None,
) -> np.ndarray | Tensor:
    """Embeddings (N, D) float32 of N texts, in their order.

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
            for rows in batches_by_length([len(text) for text in ids], batch_size):
                tokens, mask = pad([ids[row] for row in rows], model.tokenizer.pad_token_id)
                result[torch.tensor(rows, device=device)] = model.embed(tokens.to(device), mask.to(device))
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
