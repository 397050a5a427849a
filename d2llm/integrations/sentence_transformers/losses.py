"""The losses of D2LLM as one of sentence-transformers, so that its trainer distils."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from d2llm.errors import InputError
from d2llm.integrations.sentence_transformers.model import D2LLMSentenceTransformer
from d2llm.loss_weights import DEFAULTS, LossWeights
from d2llm.losses import d2llm_loss
from d2llm.tasks import task_index

#: Numbers of a passage that stand before the cosines of its feature: the raw logits of yes and no.
_LOGITS = 2


class D2LLMLoss(nn.Module):
    """In-batch, contrastive, rank and feature imitation of a teacher (paper section 3.3), each logged by its name.

    Columns are query, positive, negative_1 to negative_K, by order; the query's is told apart from the others by
    ``router_mapping`` in the trainer's arguments, as for every model with two lengths. The label column, which may be
    left out, is the teacher's, for [positive, negatives] of every row:

    * (1+K,) yes-probabilities;
    * (1+K, 2) raw logits of yes and no;
    * (1+K, 2+1+K) the same, and after them the cosines of the teacher's features, for feature imitation.

    Args:
        model: the student.
        task: ``asym`` or ``sym``; None takes the model's ``similarity_task``.
        weights: of the losses, and their temperatures.
        temperature: T of the teacher's softmax over its two logits.

    Raises:
        InputError: for an unknown task, or a model without interaction module.
    """

    def __init__(
        self,
        model: D2LLMSentenceTransformer,
        task: str | None = None,
        weights: LossWeights = DEFAULTS,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.model = model
        self.task = task_index(task or model.similarity_task)
        self.weights = weights
        self.temperature = temperature

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor | None = None) -> dict[str, Tensor]:
        """The weighted parts of the loss, which sum to it.

        Raises:
            InputError: for fewer than two columns, or labels of another shape.
        """
        columns = list(sentence_features)
        if len(columns) < 2:
            raise InputError(f"sentence_features: expected a query, a positive and any negatives, got {len(columns)}")
        queries, *passages = [self.model(column)["sentence_embedding"] for column in columns]
        group = torch.stack(passages, dim=1)
        iem = self.model.iem
        logits, features = iem(queries[:, None], group, self.task, return_features=True)
        s, relation = self._targets(labels, logits)
        total, parts = d2llm_loss(
            logits,
            iem.score_all(queries, group[:, 0], self.task),
            s,
            features=features,
            teacher_relation=relation,
            duplicates=_same_texts(columns[1]),
            weights=self.weights,
        )
        return parts or {"loss": total}

    def get_config_dict(self) -> dict[str, Any]:
        """What the model card says of the loss."""
        return {"task": self.task, "weights": vars(self.weights), "temperature": self.temperature}

    def _targets(self, labels: Tensor | None, logits: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Yes-probabilities (B, 1+K) and cosines (B, 1+K, 1+K), as far as there are any."""
        if labels is None or labels.numel() == 0:
            return None, None
        width = logits.shape[1]
        if labels.shape == logits.shape:
            return labels.float(), None
        if labels.shape[:2] != logits.shape or labels.shape[2:] not in ((_LOGITS,), (_LOGITS + width,)):
            raise InputError(
                f"labels: expected (B, {width}), (B, {width}, {_LOGITS}) or (B, {width}, {_LOGITS + width}) for "
                f"{width} passages a row, got {tuple(labels.shape)}"
            )
        s = (labels[..., :_LOGITS].float() / self.temperature).softmax(dim=-1)[..., 0]
        return s, labels[..., _LOGITS:] if labels.shape[2] > _LOGITS else None


def _same_texts(column: dict[str, Any]) -> Tensor | None:
    """(B, B) bool, where two rows of a padded column are the same tokens; None for texts in one row."""
    tokens, mask = column["input_ids"], column.get("attention_mask")
    if mask is None:
        return None
    tokens = tokens.masked_fill(mask == 0, -1)
    return (tokens[:, None] == tokens[None]).all(dim=-1)
