"""The systems of an NLI or STS table, each as one score a pair (higher is better)."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from d2llm.bm25 import BM25
from d2llm.errors import InputError
from d2llm.evaluation.compare import Comparison, compare
from d2llm.evaluation.systems import BM25_ROW, COSINE_ROW, IEM_ROW, MEAN_POOL_ROW, mean_pool
from d2llm.student import D2LLM
from d2llm.tasks import SYM, task_index

if TYPE_CHECKING:
    from d2llm.teacher.model import Teacher

Scores = NDArray[np.float32]
Pairs = Sequence[tuple[str, str]]

#: Queries that BM25 scores at once against all second texts.
_BLOCK = 256


def bm25_pairs(pairs: Pairs) -> Scores:
    """BM25 of each first text with its second one, (N,) float32; the second texts are the collection.

    Raises:
        InputError: for no pairs.
    """
    passages = {text: row for row, text in enumerate(dict.fromkeys(second for _, second in pairs))}
    queries = {text: row for row, text in enumerate(dict.fromkeys(first for first, _ in pairs))}
    index, names = BM25(list(passages)), list(queries)
    wanted: dict[int, list[int]] = {}
    for number, (first, _) in enumerate(pairs):
        wanted.setdefault(queries[first], []).append(number)
    result = np.empty(len(pairs), np.float32)
    for start in range(0, len(names), _BLOCK):
        for offset, row in enumerate(index.scores(names[start : start + _BLOCK])):
            numbers = wanted[start + offset]
            result[numbers] = row[[passages[pairs[number][1]] for number in numbers]]
    return result


def mean_pool_pairs(base_model: str, num_layers: int | None, pairs: Pairs, device: str = "cpu") -> Scores:
    """Cosine of a plain LLM's mean-pooled states, (N,) float32; see :func:`d2llm.evaluation.systems.mean_pool`."""
    pooled = mean_pool(base_model, num_layers, [text for pair in pairs for text in pair], device=device)
    return _cosine(torch.from_numpy(pooled[::2]), torch.from_numpy(pooled[1::2]))


@torch.inference_mode()
def student_pairs(
    student: D2LLM, pairs: Pairs, task: str | int = SYM, show_progress: bool | None = None
) -> tuple[Scores, Scores]:
    """Cosine and IEM logits of one encoding (paper section 3.2), both (N,) float32.

    Raises:
        InputError: for no pairs, an empty text or an unknown task.
    """
    branch = task_index(task)
    sides = []
    for side, kind in enumerate(("query", "passage")):
        rows = {text: row for row, text in enumerate(dict.fromkeys(pair[side] for pair in pairs))}
        encoded = student.encode(list(rows), kind=kind, convert_to="torch", show_progress=show_progress)
        sides.append(encoded[[rows[pair[side]] for pair in pairs]])
    return _cosine(*sides), student.iem(*sides, branch).float().cpu().numpy()


def teacher_pairs(teacher: "Teacher", pairs: Pairs, task: str = SYM, show_progress: bool = True) -> Scores:
    """The teacher's z_yes - z_no of each pair (paper section 3.1), (N,) float32.

    Raises:
        InputError: for an empty text, or a task that the teacher has no template for.
    """
    first, second = zip(*pairs, strict=True)
    logits, _ = teacher.judge(first, second, task, show_progress=show_progress)
    return logits[:, 0] - logits[:, 1]


def pairs_side_by_side(
    pairs: Pairs,
    metrics: Callable[[Any], Mapping[str, float]],
    student: D2LLM | None = None,
    teacher: "Teacher | None" = None,
    *,
    task: str = SYM,
    base_model: str | None = None,
    num_layers: int | None = None,
    show_progress: bool = True,
) -> Comparison:
    """Measure BM25, the untrained LLM, the student twice and the teacher on the same pairs.

    Args:
        pairs: N (first, second) non-empty texts.
        metrics: scores (N,) -> {metric: value}, such as ``lambda s: nli_metrics(s, labels)``.
        student: adds its cosine and its IEM; its base, cut as its own, is the untrained LLM unless named.
        teacher: adds its own judgement.
        task: branch of the interaction module and template of the teacher.
        base_model: the untrained LLM, where it is not the student's; without either it has no row.
        num_layers: layers kept of ``base_model``.
        show_progress: show progress bars.

    Returns:
        A ``Comparison``; the student's two rows share one encoding and are not timed.

    Raises:
        InputError: for no pairs, and as the systems and ``metrics`` do.
    """
    if not pairs:
        raise InputError("pairs: expected at least one, got none")
    systems: dict[str, Any] = {BM25_ROW: lambda: bm25_pairs(pairs)}
    if base_model is None and student is not None:
        base_model, num_layers = student.config.base_model, student.config.num_layers
    if base_model is not None:
        name, device = base_model, "cpu" if student is None else str(student.device)
        systems[MEAN_POOL_ROW] = lambda: mean_pool_pairs(name, num_layers, pairs, device)
    if student is not None:
        progress = None if show_progress else False
        systems[COSINE_ROW], systems[IEM_ROW] = student_pairs(student, pairs, task, progress)
    if teacher is not None:
        systems["teacher"] = lambda: teacher_pairs(teacher, pairs, task, show_progress)
    return compare(systems, metrics)


def _cosine(first: torch.Tensor, second: torch.Tensor) -> Scores:
    return torch.cosine_similarity(first.float(), second.float(), dim=1).cpu().numpy()
