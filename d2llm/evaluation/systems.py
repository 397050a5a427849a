"""The systems that a retrieval table sets side by side, each as a matrix of scores (higher is better)."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from d2llm.backbone import load_encoder, load_tokenizer
from d2llm.bm25 import BM25, top_indices
from d2llm.data.validation import Validation
from d2llm.errors import InputError
from d2llm.evaluation.compare import Comparison, Row
from d2llm.evaluation.retrieval import RECALL_AT, ir_metrics, reranked_scores
from d2llm.student import D2LLM
from d2llm.student.encoding import cosine_similarity
from d2llm.tasks import ASYM, task_index
from d2llm.texts import batches_by_length, check_texts, pad, tokenize

if TYPE_CHECKING:
    from d2llm.teacher.model import Teacher

Matrix = NDArray[np.float32]
_T = TypeVar("_T")

#: Tokens that a text is cut to for mean pooling, as a student's texts are by default.
MAX_LENGTH = 250
BATCH_SIZE = 64
#: Passages of every query that the teacher re-ranks.
CANDIDATES = 10
#: Names of the rows of ``side_by_side``.
BM25_ROW, MEAN_POOL_ROW = "BM25", "untrained LLM, mean-pool cosine"
COSINE_ROW, IEM_ROW = "student cosine", "student IEM"


def bm25(queries: Sequence[str], passages: Sequence[str]) -> Matrix:
    """BM25 of every query with every passage: Nq and Np texts -> (Nq, Np) float32.

    Raises:
        InputError: for no passages.
    """
    return BM25(passages).scores(queries)


def mean_pool(
    base_model: str, num_layers: int | None, texts: Sequence[str], max_length: int = MAX_LENGTH, device: str = "cpu"
) -> Matrix:
    """Embeddings of a plain LLM: the mean of its last hidden states over a text's tokens.

    Args:
        base_model: decoder by name (see :mod:`d2llm.backbone`).
        num_layers: keep only its first layers; None keeps all.
        texts: N non-empty texts; each distinct one is run once.
        max_length: tokens that a text is cut to.
        device: where to compute.

    Returns:
        (N, D) float32.

    Raises:
        InputError: for no texts, an empty one, or a number of layers that the model does not have.
        MissingError: if the model is not found.
    """
    rows = {text: row for row, text in enumerate(dict.fromkeys(check_texts(texts)))}
    tokenizer = load_tokenizer(base_model)
    tokenizer.truncation_side = "right"
    ids = tokenize(tokenizer, list(rows), max_length)
    model = load_encoder(base_model, num_layers=num_layers).to(device).eval()
    result = np.empty((len(ids), model.config.hidden_size), np.float32)
    with torch.inference_mode(), tqdm(total=len(ids), desc="mean pooling", unit="text", disable=len(ids) < 256) as bar:
        for batch in batches_by_length([len(tokens) for tokens in ids], BATCH_SIZE):
            tokens, mask = (part.to(device) for part in pad([ids[row] for row in batch], tokenizer.pad_token_id))
            hidden = model(input_ids=tokens, attention_mask=mask, use_cache=False).last_hidden_state.float()
            weights = mask[..., None].float()
            result[batch] = ((hidden * weights).sum(1) / weights.sum(1)).cpu().numpy()
            bar.update(len(batch))
    return result[[rows[text] for text in texts]]


def mean_pool_cosine(
    base_model: str,
    num_layers: int | None,
    queries: Sequence[str],
    passages: Sequence[str],
    max_length: int = MAX_LENGTH,
    device: str = "cpu",
) -> Matrix:
    """Cosine of a plain LLM's mean-pooled states, (Nq, Np) float32: what a student starts from.

    Arguments and errors are those of :func:`mean_pool`.
    """
    queries, passages = check_texts(queries, "queries"), check_texts(passages, "passages")
    pooled = mean_pool(base_model, num_layers, [*queries, *passages], max_length, device)
    return cosine_similarity(pooled[: len(queries)], pooled[len(queries) :])


def student_scores(
    student: D2LLM,
    queries: Sequence[str],
    passages: Sequence[str],
    task: str | int = ASYM,
    *,
    show_progress: bool | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Matrix, Matrix]:
    """Cosine and IEM logits of one encoding (paper section 3.2), both (Nq, Np) float32.

    Args:
        student: the student.
        queries: Nq non-empty texts.
        passages: Np non-empty texts.
        task: branch of the interaction module.
        show_progress, dtype: as for :meth:`D2LLM.encode`.

    Raises:
        InputError: for an empty text or an unknown task.
    """
    task_index(task)  # Refused before the encoding, which takes longer.
    vectors = _encode(student, queries, passages, show_progress, dtype)
    return cosine_similarity(*vectors), iem_scores(student, *vectors, task)


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


def teacher_reranking(
    teacher: "Teacher",
    first_stage_scores: ArrayLike,
    queries: Sequence[str],
    passages: Sequence[str],
    task: str = ASYM,
    candidates: int = CANDIDATES,
    show_progress: bool = True,
) -> NDArray[np.float64]:
    """The ranking of a first stage, its best passages re-ordered by the teacher's z_yes - z_no (paper section 3.1).

    Args:
        teacher: the teacher.
        first_stage_scores: (Nq, Np) float.
        queries: Nq non-empty texts.
        passages: Np non-empty texts.
        task: which of the teacher's templates asks.
        candidates: best passages of each query that are judged; all of them, where there are fewer.
        show_progress: show a progress bar.

    Returns:
        (Nq, Np) float64: see :func:`d2llm.evaluation.retrieval.reranked_scores`.

    Raises:
        InputError: for scores of another shape, candidates below 1, an empty text or a task without template.
    """
    first = np.asarray(first_stage_scores)
    if first.shape != (len(queries), len(passages)):
        raise InputError(f"first_stage_scores: expected ({len(queries)}, {len(passages)}), got {first.shape}")
    if candidates < 1:
        raise InputError(f"candidates: expected at least 1, got {candidates}")
    count = min(candidates, len(passages))
    chosen = np.stack([top_indices(row, count) for row in first])
    asked = [query for query in queries for _ in range(count)]
    logits, _ = teacher.judge(asked, [passages[i] for i in chosen.ravel().tolist()], task, show_progress=show_progress)
    return reranked_scores(first, chosen, (logits[:, 0] - logits[:, 1]).reshape(chosen.shape))


def side_by_side(
    data: Validation,
    student: D2LLM | None = None,
    teacher: "Teacher | None" = None,
    *,
    base_model: str | None = None,
    num_layers: int | None = None,
    candidates: int = CANDIDATES,
    first_stage: str = IEM_ROW,
    qrels: Mapping[int, Mapping[int, int]] | None = None,
    recall_at: Sequence[int] = RECALL_AT,
    show_progress: bool = True,
) -> Comparison:
    """Measure BM25, the untrained LLM, the student twice and the teacher on the same queries and passages.

    Args:
        data: queries, passages, which are relevant, and the task.
        student: adds its cosine and its IEM; its base, cut as its own, is the untrained LLM unless named.
        teacher: adds a row that re-ranks the best ``candidates`` of ``first_stage``.
        base_model: the untrained LLM, where it is not the student's; without either it has no row.
        num_layers: layers kept of ``base_model``.
        candidates: passages of each query that the teacher judges.
        first_stage: name of the row that the teacher re-ranks; BM25 where there is no student.
        qrels: graded relevance {query index: {passage index: grade}} in place of ``data.relevant``.
        recall_at: the k of Recall@k.
        show_progress: show progress bars.

    Returns:
        A ``Comparison``. ``seconds`` is what a system took from texts to scores: both rows of the student
        include the encoding that they share, and the teacher's row includes its first stage.

    Raises:
        InputError: for an unknown ``first_stage``, and as the systems do.
    """
    if qrels is None:
        qrels = {query: dict.fromkeys(found, 1) for query, found in enumerate(data.relevant)}
    systems: dict[str, tuple[NDArray[Any], float]] = {BM25_ROW: _timed(lambda: bm25(data.queries, data.passages))}
    if base_model is None and student is not None:
        base_model, num_layers = student.config.base_model, student.config.num_layers
    if base_model is not None:
        name, device = base_model, "cpu" if student is None else str(student.device)
        systems[MEAN_POOL_ROW] = _timed(
            lambda: mean_pool_cosine(name, num_layers, data.queries, data.passages, device=device)
        )
    if student is not None:
        systems |= _student_systems(student, data, None if show_progress else False)
    if teacher is not None:
        stage = first_stage if student is not None else BM25_ROW
        if stage not in systems:
            raise InputError(f"first_stage: expected one of {sorted(systems)}, got {first_stage!r}")
        judge, (first, before) = teacher, systems[stage]
        scores, seconds = _timed(
            lambda: teacher_reranking(judge, first, data.queries, data.passages, data.task, candidates, show_progress)
        )
        systems[f"teacher on {stage}'s best {min(candidates, len(data.passages))}"] = scores, before + seconds
    return Comparison(
        tuple(Row(name, ir_metrics(scores, qrels, recall_at), seconds) for name, (scores, seconds) in systems.items())
    )


def _student_systems(
    student: D2LLM, data: Validation, show_progress: bool | None
) -> dict[str, tuple[NDArray[Any], float]]:
    """Both ways of a student to score, with the time of the encoding in each."""
    vectors, encoding = _timed(lambda: _encode(student, data.queries, data.passages, show_progress))
    cosine, seconds = _timed(lambda: cosine_similarity(*vectors))
    logits, more = _timed(lambda: iem_scores(student, *vectors, data.task))
    return {COSINE_ROW: (cosine, encoding + seconds), IEM_ROW: (logits, encoding + more)}


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


def _timed(work: Callable[[], _T]) -> tuple[_T, float]:
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start
