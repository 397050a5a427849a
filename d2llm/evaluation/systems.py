"""Systems on data that is small enough for a matrix of all scores (higher is better), as training watches it."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from d2llm.bm25 import BM25
from d2llm.data.validation import Validation
from d2llm.evaluation.embedders import MAX_LENGTH, MeanPool
from d2llm.student import D2LLM
from d2llm.student.encoding import cosine_similarity
from d2llm.tasks import task_index
from d2llm.texts import check_texts

Matrix = NDArray[np.float32]


def bm25(queries: Sequence[str], passages: Sequence[str]) -> Matrix:
    """BM25 of every query with every passage: Nq and Np texts -> (Nq, Np) float32.

    Raises:
        InputError: for no passages.
    """
    return BM25(passages).scores(queries)


def mean_pool_cosine(
    base_model: str,
    num_layers: int | None,
    queries: Sequence[str],
    passages: Sequence[str],
    max_length: int = MAX_LENGTH,
    device: str = "cpu",
) -> Matrix:
    """Cosine of a plain LLM's mean-pooled states, (Nq, Np) float32: what a student starts from.

    Arguments and errors are those of :class:`d2llm.evaluation.embedders.MeanPool`.
    """
    queries, passages = check_texts(queries, "queries"), check_texts(passages, "passages")
    pooled = MeanPool(base_model, num_layers, max_length, device).encode([*queries, *passages])
    return cosine_similarity(pooled[: len(queries)], pooled[len(queries) :])


def student_mrr(
    student: D2LLM,
    data: Validation,
    dtype: torch.dtype | None = None,
    vectors: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> dict[str, float]:
    """Mean reciprocal rank over all passages: ``mrr`` by the interaction module, ``mrr_cosine`` by cosine.

    Args:
        student: the student.
        data: the queries, the passages and which are relevant.
        dtype: that of :meth:`D2LLM.encode`.
        vectors: embeddings (Nq, D) and (Np, D) of the two, where they are there already.
    """
    queries, passages = vectors or _encode(student, data.queries, data.passages, False, dtype)
    cosine, logits = cosine_similarity(queries, passages), iem_scores(student, queries, passages, data.task)
    return {"mrr": data.mean_reciprocal_rank(logits), "mrr_cosine": data.mean_reciprocal_rank(cosine)}


def _encode(
    student: D2LLM,
    queries: Sequence[str],
    passages: Sequence[str],
    show_progress: bool | None,
    dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        student.encode(queries, "query", convert_to="torch", show_progress=show_progress, dtype=dtype),
        student.encode(passages, "passage", convert_to="torch", show_progress=show_progress, dtype=dtype),
    )


@torch.inference_mode()
def iem_scores(student: D2LLM, queries: torch.Tensor, passages: torch.Tensor, task: str | int) -> Matrix:
    """IEM logits (Nq, Np) float32 of query embeddings (Nq, D) with passage embeddings (Np, D)."""
    queries, passages = queries.to(student.head_dtype), passages.to(student.head_dtype)
    return student.iem.score_all(queries, passages, task_index(task)).float().cpu().numpy()
