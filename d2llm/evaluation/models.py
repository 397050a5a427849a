"""The models behind the systems of a line-up."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from d2llm.evaluation.embedders import CrossEncoder, MeanPool, SentenceTransformer
from d2llm.evaluation.lineup import MEAN_POOL_ROW, Lineup, System
from d2llm.evaluation.rerank import Judge
from d2llm.evaluation.scorers import Encoder


def encoder_of(lineup: Lineup, system: System) -> tuple[str, Encoder]:
    """The encoder of an ``untrained``, ``mean`` or ``st`` system, and the name of its row.

    Raises:
        MissingError: if there is no such model.
    """
    if system.kind == "untrained":
        student = lineup.students[0][1]
        base, layers = student.config.base_model, student.config.num_layers
        return MEAN_POOL_ROW, MeanPool(base, layers, device=str(student.device))
    return system.name, MeanPool(system.model) if system.kind == "mean" else SentenceTransformer(system.model)


def judge_of(lineup: Lineup, system: System, task: str, show_progress: bool = True) -> tuple[str, Judge]:
    """What judges pairs for a ``teacher`` or ``cross`` system, and its name.

    The teacher's score is z_yes - z_no (paper section 3.1).

    Raises:
        InputError: for a task that the teacher has no template for, once it is asked.
    """
    if system.kind == "cross":
        return system.name, CrossEncoder(system.model)
    teacher = lineup.teacher
    assert teacher is not None

    def margins(queries: Sequence[str], passages: Sequence[str]) -> NDArray[np.floating]:
        logits, _ = teacher.judge(queries, passages, task, show_progress=show_progress)
        return logits[:, 0] - logits[:, 1]

    return "teacher", margins
