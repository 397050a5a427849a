"""A student or a teacher as what scores pairs of texts, under the names of sentence-transformers' CrossEncoder."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from d2llm.errors import InputError, shown
from d2llm.student import D2LLM
from d2llm.tasks import ASYM
from d2llm.teacher.model import NO, YES, Teacher


class PairScorer:
    """Scores pairs: a student by its interaction module's logits, a teacher by its log-odds of yes, both unbounded.

    Neither is squeezed into [0, 1], so that what is far from the border keeps its order.

    Args:
        model: a student or a teacher.
        task: ``asym`` or ``sym``; a teacher needs a template for it.
    """

    def __init__(self, model: D2LLM | Teacher, task: str = ASYM) -> None:
        self.model = model
        self.task = task

    def predict(
        self,
        inputs: Sequence[Sequence[str]] | Sequence[str],
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        prompt_name: str | None = None,
        prompt: str | None = None,
        pool: object = None,
    ) -> Any:
        """Scores (N,) float32 of N pairs of texts, or the score of one pair.

        Args:
            inputs: N pairs ``(query, passage)``, or one.
            batch_size: not read: the length of the texts decides how many run at once.
            show_progress_bar: None leaves it to the model.
            convert_to_numpy: an array is returned; else a list of tensors.
            convert_to_tensor: a tensor is returned.
            prompt_name, prompt, pool: of a CrossEncoder; there are none here.

        Raises:
            InputError: for anything but pairs of non-empty texts, or for a prompt or a pool.
        """
        for name, given in (("prompt_name", prompt_name), ("prompt", prompt), ("pool", pool)):
            if given is not None:
                raise InputError(f"{name}: expected None, as there is none here, got {shown(given)}")
        one = len(inputs) == 2 and all(isinstance(text, str) for text in inputs)
        pairs: list[Any] = [inputs] if one else list(inputs)
        for i, pair in enumerate(pairs):
            if isinstance(pair, str) or len(pair) != 2:
                raise InputError(f"inputs[{i}]: expected a pair of texts, got {shown(pair)}")
        found = torch.from_numpy(self._scores(pairs, show_progress_bar))
        scores = found if convert_to_tensor else found.numpy() if convert_to_numpy else list(found)
        return scores[0] if one else scores

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        top_k: int | None = None,
        return_documents: bool = False,
        show_progress_bar: bool | None = None,
    ) -> list[dict[str, Any]]:
        """Documents by falling score: ``corpus_id``, ``score`` and, if asked for, ``text``.

        Raises:
            InputError: for no documents, or an empty text.
        """
        scores = self.predict([(query, document) for document in documents], show_progress_bar=show_progress_bar)
        order = np.argsort(-scores, kind="stable")[:top_k]
        text = (lambda i: {"text": documents[i]}) if return_documents else lambda i: {}
        return [{"corpus_id": int(i), "score": float(scores[i]), **text(i)} for i in order]

    def _scores(self, pairs: Sequence[Sequence[str]], show: bool | None) -> np.ndarray:
        queries, passages = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        if isinstance(self.model, D2LLM):
            return self.model.score(queries, passages, self.task, show_progress=show)
        logits, _ = self.model.judge(queries, passages, self.task, show_progress=bool(show))
        difference: np.ndarray = logits[:, YES] - logits[:, NO]
        return difference
