"""The teacher: a causal LLM that judges a (query, passage) pair by its yes and no logits (paper section 3.1)."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from d2llm.backbone import Loading, load_causal_lm, load_tokenizer, weights_fingerprint
from d2llm.errors import InputError, MismatchError
from d2llm.files import sha256
from d2llm.merging import InferenceCopy, inference_dtype, is_sharded
from d2llm.teacher.adapter import ADAPTER_WEIGHTS, AdapterSettings, find_adapter, read_settings, with_adapter
from d2llm.teacher.prompt import PROMPT_VERSION, PromptBuilder, builder_of, described, make_builders
from d2llm.teacher.reader import PromptReader
from d2llm.teacher.templates import TEMPLATES, Template
from d2llm.texts import CPU_TOKENS, TOKEN_BUDGET

#: Columns of a logits array.
YES, NO = 0, 1


class Teacher(nn.Module):
    """A causal LLM with a yes/no template for each task.

    Args:
        decoder: the model below the language-model head, with or without a LoRA adapter.
        head: the language-model head, of which two rows are used.
        tokenizer: its tokenizer.
        origin: what the weights are, for the header of score files: model, revision, base (their fingerprint),
            adapter, num_layers.
        templates: one template for each task that will be asked.
        query_length, passage_length: most tokens kept of each text.
        prompt_version: how prompts are tokenised; see :class:`PromptBuilder`.

    Raises:
        InputError: for no templates, two of one task, an answer that is not one token, or prompts that can
            be longer than the model's context.
    """

    def __init__(
        self,
        decoder: Any,
        head: nn.Linear,
        tokenizer: Any,
        origin: Mapping[str, Any],
        templates: Sequence[Template] = (TEMPLATES["sym-en"], TEMPLATES["asym-en"]),
        query_length: int = 64,
        passage_length: int = 192,
        prompt_version: int = PROMPT_VERSION,
    ) -> None:
        super().__init__()
        self.decoder = decoder
        self.head = head
        self.inference = InferenceCopy()
        self.origin = dict(origin)
        self.limits = {"query_length": query_length, "passage_length": passage_length}
        self.tokenizer = tokenizer
        self.builders = make_builders(tokenizer, templates, query_length, passage_length, prompt_version)
        longest = max(builder.longest for builder in self.builders.values())
        context = getattr(decoder.config, "max_position_embeddings", None)
        if context is not None and longest > context:
            raise InputError(
                f"query_length, passage_length: prompts of up to {longest} tokens, the model's context has {context}"
            )

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str] | None = None,
        adapter: str | os.PathLike[str] | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        num_layers: int | None = None,
        revision: str | None = None,
        attn_implementation: str | None = None,
        device_map: str | Mapping[str, int | str] | None = None,
        templates: Sequence[Template] | None = None,
        query_length: int | None = None,
        passage_length: int | None = None,
    ) -> "Teacher":
        """Load a causal LM by name (see :mod:`d2llm.backbone`), cut to ``num_layers``, with a LoRA adapter on it.

        Args:
            model: the LLM's name; None takes the one that the adapter was tuned on.
            adapter: folder made by ``d2llm teach tune``, or the ``adapter`` in it. It remembers the LLM, the number of
                layers, the templates and the text lengths it was made with.
            dtype: number type of the weights.
            num_layers: keep only the first layers; None takes what the adapter remembers, or all.
            revision, attn_implementation, device_map: see :class:`d2llm.backbone.Loading`.
            templates: one for each task that will be asked; None takes what the adapter remembers, or the
                constructor's. Beside an adapter they may add tasks that it was not tuned for.
            query_length, passage_length: most tokens kept of each text; None takes what the adapter remembers, or the
                constructor's.

        Raises:
            MissingError: if the model, the adapter or a file of either is missing.
            MismatchError: if the adapter was made for another model, number of layers or template.
            FormatError: if weights or settings are truncated or altered.
            InputError: as the constructor does, if ``num_layers`` is out of range, or for neither model nor adapter.
        """
        folder = find_adapter(adapter) if adapter is not None else None
        tuned = read_settings(folder) if folder is not None else None
        if tuned is not None:
            if num_layers is not None and num_layers != tuned.num_layers:
                raise MismatchError(
                    f"num_layers: the adapter was tuned with {tuned.num_layers} layers, got {num_layers}"
                )
            num_layers = tuned.num_layers
            if model is None:
                model, revision = tuned.model, tuned.revision
            templates = tuned.join(templates) or None
            query_length = tuned.query_length if query_length is None else query_length
            passage_length = tuned.passage_length if passage_length is None else passage_length
        if model is None:
            raise InputError("model: expected the name of an LLM, or an adapter that remembers it, got neither")
        lm = load_causal_lm(model, dtype, num_layers, Loading(revision, attn_implementation, device_map))
        base = None if dtype == torch.float16 else weights_fingerprint(lm)
        decoder = lm.get_decoder()
        if tuned is not None and folder is not None:
            tuned.check_base(os.fspath(model), base)
            decoder = with_adapter(decoder, folder)
        origin = {
            "model": os.fspath(model),
            "revision": revision,
            "base": base,
            "adapter": sha256(folder / ADAPTER_WEIGHTS) if folder is not None else None,
            "num_layers": num_layers,
            "weights_dtype": str(dtype).removeprefix("torch."),
        }
        options = {"templates": templates, "query_length": query_length, "passage_length": passage_length}
        given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        if tuned is not None:
            given["prompt_version"] = tuned.prompt
        return cls(decoder, lm.get_output_embeddings(), load_tokenizer(model, revision), origin, **given).eval()

    @property
    def prompt_version(self) -> int:
        """How prompts are tokenised."""
        return next(iter(self.builders.values())).version

    def header(self) -> dict[str, Any]:
        """What decides this teacher's scores: model, adapter, templates, answer tokens, text lengths, number type."""
        return {
            **self.origin,
            **self.limits,
            **described(self.builders),
        }

    def settings(self) -> AdapterSettings:
        """What an adapter that is tuned on this teacher has to remember."""
        return AdapterSettings(
            **{name: self.origin[name] for name in ("model", "revision", "base", "num_layers")},
            query_length=self.limits["query_length"],
            passage_length=self.limits["passage_length"],
            templates=tuple(builder.template for builder in self.builders.values()),
            prompt=self.prompt_version,
        )

    def builder(self, task: str) -> PromptBuilder:
        """The prompt builder of a task.

        Raises:
            InputError: if the teacher has no template for it.
        """
        return builder_of(self.builders, task)

    def train(self, mode: bool = True) -> "Teacher":
        """As of any module; training frees the merged copy that :meth:`judge` computes with."""
        if mode:
            self.inference.drop()
        return super().train(mode)

    def forward(self, inputs: dict[str, Tensor], task: str) -> tuple[Tensor, Tensor]:
        """Raw logits (B, 2) float32 of yes and no, and features (B, D): both at the last position.

        Only the two rows of the language-model head that are read are computed.

        Args:
            inputs: ``input_ids``, ``attention_mask`` and ``position_ids``, each (B, L) int64, padded on the left.
            task: which template's answers are read.

        Raises:
            InputError: for a task without a template.
        """
        hidden = self.decoder(**inputs, use_cache=False).last_hidden_state[:, -1]
        return self.answer_logits(hidden, task), hidden

    def answer_logits(self, hidden: Tensor, task: str) -> Tensor:
        """Logits (B, 2) float32 of yes and no from last-position hidden states (B, D) (paper equation 2).

        Raises:
            InputError: for a task without a template.
        """
        builder = self.builder(task)
        rows = torch.tensor([builder.yes, builder.no], device=self.head.weight.device)
        bias = None if self.head.bias is None else self.head.bias[rows].float()
        # float32: yes and no are close together, and the difference is what is learned from.
        with torch.autocast(hidden.device.type, enabled=False):
            logits = nn.functional.linear(hidden.float(), self.head.weight[rows].float(), bias)
        return _as_the_model_scales(logits, self.decoder.config)

    def judge(
        self,
        queries: Sequence[str],
        passages: Sequence[str],
        task: str,
        *,
        batch_tokens: int | None = None,
        show_progress: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Judge pairs: raw logits (N, 2) float32 [yes, no] and features (N, D) float32.

        An adapter is merged into a copy of the weights that it adapts. What the prompts of a query begin with is read
        once, where they are many and the LLM's cache allows it; the rest runs in batches of like length, at most
        ``batch_tokens`` tokens each (None: as many as keep the device busy). A pair's result does not depend on the
        pairs beside it, but for rounding.

        Raises:
            InputError: for a task without a template, lists of different lengths, an empty text or a
                ``batch_tokens`` below 1.
        """
        if batch_tokens is not None and batch_tokens < 1:
            raise InputError(f"batch_tokens: expected at least 1, got {batch_tokens}")
        prompts = self.builder(task).build(queries, passages)
        logits = np.empty((len(prompts), 2), np.float32)
        features = np.empty((len(prompts), self.head.in_features), np.float32)
        training = self.decoder.training
        self.decoder.eval()
        try:
            with torch.inference_mode(), tqdm(total=len(prompts), desc="teacher", disable=not show_progress) as bar:
                for rows, hidden in self._reader(batch_tokens).read(prompts, queries):
                    logits[rows] = self.answer_logits(hidden, task).cpu().numpy()
                    features[rows] = hidden.float().cpu().numpy()
                    bar.update(len(rows))
        finally:
            self.decoder.train(training)
        return logits, features

    def _reader(self, batch_tokens: int | None) -> PromptReader:
        device = self.head.weight.device
        dtype = inference_dtype(self.head.weight.dtype, device)
        decoder = self.decoder if is_sharded(self.decoder) else self.inference.of(self.decoder, dtype)
        batch_tokens = batch_tokens or (CPU_TOKENS if device.type == "cpu" else TOKEN_BUDGET)
        return PromptReader(decoder, self.tokenizer.pad_token_id, batch_tokens, device)

    def score(
        self,
        queries: Sequence[str],
        passages: Sequence[str],
        task: str,
        *,
        temperature: float = 1.0,
        show_progress: bool = False,
    ) -> np.ndarray:
        """Probability of yes for each pair, (N,) float32: softmax(z / temperature)[yes] (paper equation 3).

        Raises:
            InputError: as :meth:`judge` does, or for a temperature that is not a positive number.
        """
        check_temperature(temperature)
        logits, _ = self.judge(queries, passages, task, show_progress=show_progress)
        return yes_probability(logits, temperature)


def check_temperature(temperature: float) -> None:
    """Make sure that a temperature divides logits into something finite.

    Raises:
        InputError: if it is not a positive, finite number.
    """
    if not 0 < temperature < math.inf:
        raise InputError(f"temperature: expected a positive number, got {temperature}")


def yes_probability(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """s = softmax(z / temperature)[yes], float32 (...,), of raw logits (..., 2) [yes, no] (paper equation 3).

    Raises:
        InputError: for a temperature that is not a positive number.
    """
    check_temperature(temperature)
    difference = (logits[..., YES] - logits[..., NO]).astype(np.float64) / temperature
    # Written by halves so that neither exponential overflows.
    small = np.exp(-np.abs(difference))
    return np.where(difference >= 0, 1 / (1 + small), small / (1 + small)).astype(np.float32)


def _as_the_model_scales(logits: Tensor, config: Any) -> Tensor:
    """What some models do to the head's output: Cohere multiplies, Granite divides, Gemma caps."""
    if (factor := getattr(config, "logit_scale", None)) is not None:
        logits = logits * factor
    if (divisor := getattr(config, "logits_scaling", None)) is not None:
        logits = logits / divisor
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        logits = cap * torch.tanh(logits / cap)
    return logits
