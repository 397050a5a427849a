"""Models of others as systems: plain transformers encoders, sentence-transformers models, cross-encoders."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from d2llm.backbone import load_encoder, load_tokenizer
from d2llm.devices import best_device
from d2llm.errors import InputError
from d2llm.texts import CPU_TOKENS, TOKEN_BUDGET, batches_by_length, check_texts, pad, tokenize

Matrix = NDArray[np.float32]

#: Tokens that a text is cut to for mean pooling, as a student's texts are by default.
MAX_LENGTH = 250


class MeanPool:
    """A plain encoder or decoder: the mean of its last hidden states over a text's tokens.

    Args:
        model: its name (see :mod:`d2llm.backbone`).
        num_layers: keep only its first layers; None keeps all.
        max_length: tokens that a text is cut to.
        device: where to compute; None takes the accelerator where there is one.

    Raises:
        InputError: for a number of layers that the model does not have.
        MissingError: if the model is not found.
    """

    def __init__(
        self, model: str, num_layers: int | None = None, max_length: int = MAX_LENGTH, device: str | None = None
    ) -> None:
        self._device = device or str(best_device())
        self._tokenizer = load_tokenizer(model)
        self._tokenizer.truncation_side = "right"
        self._model = load_encoder(model, num_layers=num_layers).to(self._device).eval()
        self._max_length = max_length

    @torch.inference_mode()
    def encode(self, texts: Sequence[str], kind: str = "passage") -> Matrix:
        """N non-empty texts of either kind -> (N, D) float32; each distinct one is run once.

        Raises:
            InputError: for no texts, or an empty one.
        """
        rows = {text: row for row, text in enumerate(dict.fromkeys(check_texts(texts)))}
        ids = tokenize(self._tokenizer, list(rows), self._max_length)
        result = np.empty((len(ids), self._model.config.hidden_size), np.float32)
        with tqdm(total=len(ids), desc="mean pooling", unit="text", disable=len(ids) < 256) as bar:
            tokens_at_once = CPU_TOKENS if self._device == "cpu" else TOKEN_BUDGET
            for batch in batches_by_length([len(tokens) for tokens in ids], token_budget=tokens_at_once):
                padded = pad([ids[row] for row in batch], self._tokenizer.pad_token_id)
                tokens, mask = (part.to(self._device) for part in padded)
                hidden = self._model(input_ids=tokens, attention_mask=mask, use_cache=False).last_hidden_state
                weights = mask[..., None].float()
                result[batch] = ((hidden.float() * weights).sum(1) / weights.sum(1)).cpu().numpy()
                bar.update(len(batch))
        return result[[rows[text] for text in texts]]


class SentenceTransformer:
    """A model of sentence-transformers, with the prompts for queries and documents that it has.

    Raises:
        ModuleNotFoundError: if sentence-transformers is not installed.
        OSError: if there is no such model.
    """

    def __init__(self, model: str) -> None:
        import sentence_transformers

        self._model = sentence_transformers.SentenceTransformer(model)

    def encode(self, texts: Sequence[str], kind: str = "passage") -> Matrix:
        """N texts -> (N, D) float32."""
        encode = self._model.encode_query if kind == "query" else self._model.encode_document
        return np.asarray(encode(check_texts(texts), convert_to_numpy=True), np.float32)


class CrossEncoder:
    """A cross-encoder of sentence-transformers, which scores pairs of texts.

    Raises:
        ModuleNotFoundError: if sentence-transformers is not installed.
        OSError: if there is no such model.
    """

    def __init__(self, model: str) -> None:
        import sentence_transformers

        self._model = sentence_transformers.CrossEncoder(model)

    def __call__(self, queries: Sequence[str], passages: Sequence[str]) -> NDArray[np.float32]:
        """N queries and N passages -> (N,) float32, higher is better.

        Raises:
            InputError: for a model that gives several scores a pair, such as one of inference.
        """
        scores = np.asarray(self._model.predict(list(zip(queries, passages, strict=True))), np.float32)
        if scores.shape != (len(queries),):
            raise InputError(f"cross-encoder: expected one score a pair, got {scores.shape} for {len(queries)} pairs")
        return scores
