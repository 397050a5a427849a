"""A student as an encoder of MTEB whose similarity is its interaction module's."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ScoringFunction
from mteb.types import PromptType
from torch import Tensor

from d2llm.errors import InputError, shown
from d2llm.integrations.vectors import Embeddings, score_all, score_pairs
from d2llm.student import D2LLM
from d2llm.tasks import ASYM, SYM, task_index

#: Kinds of tasks that ask for what answers a query; in all others two texts stand side by side.
_ASKING = frozenset({"Retrieval", "Reranking", "InstructionRetrieval", "InstructionReranking"})


def branch_of(task_metadata: Any) -> str:
    """The branch that scores an MTEB task: ``asym`` where passages answer queries, else ``sym``."""
    return ASYM if task_metadata.type in _ASKING else SYM


class D2LLMEncoder(AbsEncoder):  # type: ignore[misc]
    """What ``mteb.evaluate`` takes; its results stand under ``spearman`` and ``similarity_ap``, not ``cosine_...``.

    MTEB asks for scores without saying for which task, so that the branch is that of the task encoded last. The two
    texts of a pair are both cut as passages, since MTEB does not tell them apart.

    Args:
        student: the model.
        name: under which MTEB keeps results, as ``organisation/model``.
    """

    def __init__(self, student: D2LLM, name: str = "d2llm/student") -> None:
        self.model = student
        self.task = ASYM
        self.mteb_model_meta = ModelMeta.create_empty(
            overwrites={
                "name": name,
                "revision": student.fingerprint(),
                "similarity_fn_name": ScoringFunction.CUSTOM,
                "framework": ["PyTorch"],
                "embed_dim": student.dim,
                "max_tokens": student.config.passage_length,
                "modalities": ["text"],
                "use_instructions": False,
            }
        )

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """Embeddings (N, D) float32 of the texts of all batches; a text that is empty, as corpora have some, is zero.

        Args:
            inputs: batches, each with its ``text``.
            task_metadata: of the task, which decides the branch of the scores that are asked for next.
            hf_split, hf_subset: not read.
            prompt_type: whether the texts are queries; else they are cut as passages.
            batch_size: not read: the length of the texts decides how many run at once.
            show_progress_bar: whether to show one.
            **kwargs: what else MTEB passes to every encoder.

        Raises:
            InputError: for a task that is not of texts, or a text that is none.
        """
        self.task = branch_of(task_metadata)
        batches = list(inputs)
        if any("text" not in batch for batch in batches):
            raise InputError(f"task: expected one of texts, got {task_metadata.name} of {task_metadata.modalities}")
        texts = [text for batch in batches for text in batch["text"]]
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                raise InputError(f"inputs[{row}]: expected a text, got {shown(text)}")
        kind = "query" if prompt_type == PromptType.query else "passage"
        vectors = np.zeros((len(texts), self.model.dim), np.float32)
        if present := [row for row, text in enumerate(texts) if text.strip()]:
            vectors[present] = self.model.encode([texts[row] for row in present], kind, None, show_progress_bar)
        return vectors

    def similarity(self, embeddings1: Embeddings, embeddings2: Embeddings) -> Tensor:
        """IEM logits (N1, N2) of every query with every passage."""
        return score_all(self.model.iem, embeddings1, embeddings2, task_index(self.task)).float().cpu()

    def similarity_pairwise(self, embeddings1: Embeddings, embeddings2: Embeddings) -> Tensor:
        """IEM logits (N,) of pairs."""
        return score_pairs(self.model.iem, embeddings1, embeddings2, task_index(self.task)).float().cpu()
