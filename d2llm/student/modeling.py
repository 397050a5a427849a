"""D2LLM as a transformers model: decoder with LoRA, PMA on its hidden states, IEM on pairs of embeddings."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partialmethod
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

import d2llm_kernels as dk
from d2llm.backbone import held_weights
from d2llm.compiling import check_compiler, compile_in_place
from d2llm.errors import FormatError, InputError
from d2llm.merging import InferenceCopy, in_few_bits, is_quantised, is_sharded
from d2llm.student import building, checkpoint, encoding, hub, scoring
from d2llm.student.cached_gradients import cached
from d2llm.student.chunks import Texts, embeddings
from d2llm.student.configuration import D2LLMConfig
from d2llm.student.gathering import gathered
from d2llm.student.lora import with_lora
from d2llm.tasks import TASKS


@dataclass
class StudentOutput(ModelOutput):
    """What :meth:`D2LLM.forward` returns. B queries, P distinct passages, groups of 1+K passages, F IEM features.

    With ``gather``, B counts the queries of all processes; P stays this process's.
    """

    #: (B, D) embeddings of ``input_ids``.
    embeddings: Tensor | None = None
    #: (P, D) embeddings of ``passage_input_ids``.
    passage_embeddings: Tensor | None = None
    #: (B, D) embeddings of every query's positive.
    positive_embeddings: Tensor | None = None
    #: (B, 1+K) IEM logits of every query with its own positive (index 0) and negatives.
    logits: Tensor | None = None
    #: (B, 1+K, F) IEM features of the same pairs.
    features: Tensor | None = None
    #: (B, B) IEM logits of query i with the positive of query j.
    in_batch_logits: Tensor | None = None


class D2LLM(PreTrainedModel):
    """Bi-encoder student of D2LLM with its interaction module (paper section 3.2).

    Build one with :meth:`create`, load one with :meth:`from_pretrained`.
    """

    config_class = D2LLMConfig
    config: D2LLMConfig
    backbone: Any
    base_model_prefix = "backbone"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True

    def __init__(self, config: D2LLMConfig, backbone: Any, tokenizer: Any) -> None:
        """Put LoRA into ``backbone`` in place and add fresh heads.

        Args:
            config: the architecture.
            backbone: a decoder without language-model head that returns hidden states (B, L, D).
            tokenizer: its tokenizer, with a padding token.

        Raises:
            InputError: if the configuration does not fit the backbone.
        """
        super().__init__(config)
        self.backbone = with_lora(backbone, config)
        self.tokenizer = tokenizer
        tokenizer.padding_side = tokenizer.truncation_side = "right"
        dim = backbone.config.hidden_size
        layers = backbone.config.num_hidden_layers
        if not -1 <= config.hidden_layer <= layers:
            raise InputError(f"hidden_layer: expected -1 to {layers}, got {config.hidden_layer}")
        heads = config.heads_for(dim, backbone.config.num_attention_heads)
        self.pma = dk.PMA(
            dim, heads, ln=config.pma_ln, residual=config.pma_residual, backend=config.kernels_backend, init=config.init
        )
        self.iem = dk.IEM(
            dim, hidden=config.iem_hidden, num_tasks=len(TASKS), backend=config.kernels_backend, init=config.init
        )
        self.inference = InferenceCopy()
        #: Whether chunks of a step follow each other, all threads at one, whatever the machine.
        self.chunks_in_turn = False

    create = classmethod(building.create)
    assemble = classmethod(building.assemble)
    from_pretrained = classmethod(checkpoint.load)  # type: ignore[assignment]
    save_pretrained = checkpoint.save  # type: ignore[assignment]
    #: As ``save_pretrained``, with LoRA merged into the base that is saved beside it.
    merge_and_save = partialmethod(checkpoint.save, merged=True)
    push_to_hub = hub.push  # type: ignore[assignment]
    encode = encoding.encode
    score = scoring.score
    rank = scoring.rank

    @property
    def dim(self) -> int:
        """Width D of an embedding."""
        return int(self.backbone.config.hidden_size)

    @property
    def head_dtype(self) -> torch.dtype:
        """Number type of the heads: float32, unless ``to`` has changed it."""
        return self.iem.linear1.weight.dtype

    def trainable_state(self) -> dict[str, Tensor]:
        """The weights that are the student's own and not its frozen base's, by name, as views."""
        return checkpoint.own_weights(self.named_parameters(), self.config.train_base)

    def fingerprint(self) -> str:
        """16 hex digits of SHA-256 over the architecture, the student's own weights and a sample of its base's.

        Two students with the same fingerprint give the same embeddings and scores, up to the rounding of the base's
        number type, so that an index can tell whether a model made it. Where the base lies does not matter.
        """
        essentials = {name: getattr(self.config, name) for name in _ESSENTIAL}
        digest = hashlib.sha256(json.dumps(essentials, sort_keys=True).encode())
        for name, value in held_weights(self):
            digest.update(name.encode())
            if value.is_floating_point() and in_few_bits(value):
                value = value.dequantize()
            # bfloat16 of the base, since that is what both a float32 and a bfloat16 copy of it agree on.
            part = (
                value if checkpoint.is_own(name, self.config.train_base) else value.flatten()[:_BASE_SAMPLE].bfloat16()
            )
            digest.update(part.float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def get_input_embeddings(self) -> nn.Module:
        """The base's token embedding, which gradient checkpointing asks for."""
        embedding: nn.Module = self.backbone.get_input_embeddings()
        return embedding

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights by name; frozen weights of the base may be absent, since a student's file has none of them."""
        self.inference.drop()
        frozen = self.state_dict().keys() - self.trainable_state().keys()
        result = super().load_state_dict(state_dict, strict=False, assign=assign)
        missing = [name for name in result.missing_keys if name not in frozen]
        result.missing_keys[:] = missing
        if strict and (missing or result.unexpected_keys):
            raise FormatError(f"state_dict: missing weights {missing}, unexpected weights {result.unexpected_keys}")
        return result

    def train(self, mode: bool = True) -> "D2LLM":
        """As of any module; training frees the merged copy that :meth:`encode` computes with."""
        if mode:
            self.inference.drop()
        return super().train(mode)

    def compile_encoder(self) -> "D2LLM":
        """Let torch compile the LLM that :meth:`encode` computes with, at its next call, and return the student.

        It takes a minute or more, and pays where many thousand texts are encoded. Training is told by
        ``run.torch_compile``.

        Raises:
            MissingError: if torch cannot compile here.
        """
        check_compiler(self.device)
        if self.inference.int8:
            raise InputError("compile_encoder: expected an encoder in float, got one in int8; choose one of both")
        self.inference.drop()
        self.inference.compiled = True
        return self

    def quantize_encoder(self) -> "D2LLM":
        """Let the LLM that :meth:`encode` computes with hold its linear layers in int8, and return the student.

        The merged weights are rounded, and so is every token's row that comes to them
        (:class:`d2llm_kernels.rough.linear.Int8Linear`); the rest computes in float32. Embeddings differ a little from
        those in float: docs/quality.md says what that costs, docs/benchmarks.md what it gains.

        Raises:
            InputError: for an encoder that torch compiles, or a base that is quantised already, is shared among
                processes, or has no linear layers.
        """
        for reason, wrong in (
            ("one that torch compiles", self.inference.compiled),
            ("one whose base is quantised", is_quantised(self.backbone)),
            ("one shared among processes", is_sharded(self.backbone)),
            ("one without linear layers", not any(isinstance(layer, nn.Linear) for layer in self.backbone.modules())),
        ):
            if wrong:
                raise InputError(f"quantize_encoder: expected an encoder with linear layers in float, got {reason}")
        self.inference.drop()
        self.inference.int8 = True
        return self

    def compile_steps(self) -> None:
        """Let torch compile the LLM that :meth:`forward` computes with, at its next call; it compiles in one thread."""
        compile_in_place(self.backbone)
        self.chunks_in_turn = True

    def embed(
        self, input_ids: Tensor, attention_mask: Tensor, u: Tensor | None = None, backbone: Any | None = None
    ) -> Tensor:
        """Embeddings (B, D) float32 of right-padded token ids (B, L) int64 with mask (B, L).

        Args:
            input_ids: (B, L) int64.
            attention_mask: (B, L), 1 for real tokens.
            u: ``pma.folded_queries()``, for whoever embeds many batches.
            backbone: a copy to compute with (:class:`d2llm.merging.InferenceCopy`); None takes the student's own.
        """
        return self.pool(self.hidden(input_ids, attention_mask, backbone), attention_mask, u)

    def hidden(self, input_ids: Tensor, attention_mask: Tensor, backbone: Any | None = None) -> Tensor:
        """Hidden states (B, L, D) of the layer that is pooled; arguments as for :meth:`embed`."""
        last = self.config.hidden_layer in (-1, self.backbone.config.num_hidden_layers)
        output = (self.backbone if backbone is None else backbone)(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False, output_hidden_states=not last
        )
        hidden: Tensor = output.last_hidden_state if last else output.hidden_states[self.config.hidden_layer]
        return hidden

    def pool(self, hidden: Tensor, attention_mask: Tensor, u: Tensor | None = None) -> Tensor:
        """Embeddings (B, D) float32 of hidden states (B, L, D); arguments as for :meth:`embed`."""
        if not torch.is_autocast_enabled(hidden.device.type):
            hidden = hidden.to(self.head_dtype)
        return self.pma(hidden, attention_mask, u=u).float()

    def _groups(self, queries: Tensor, passages: Tensor, groups: Tensor, task: Tensor) -> tuple[Tensor, Tensor]:
        """IEM logits (B, 1+K) and features (B, 1+K, F) of queries (B, D) with those of the passages (P, D)."""
        logits, features = self.iem(queries[:, None], passages[groups], task[:, None], return_features=True)
        return logits, features

    def _cached_groups(self, queries: Tensor, passages: Tensor, groups: Tensor, task: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`_groups` some thousand pairs at a time."""
        rows = max(1, _PAIRS_AT_ONCE // groups.shape[1])
        weights = [p for p in self.iem.parameters() if p.requires_grad]
        parts = zip(queries.split(rows), groups.split(rows), task.split(rows), strict=True)
        found = [cached(self._groups, (some, passages, group, branch), weights) for some, group, branch in parts]
        logits, features = zip(*found, strict=True)
        return torch.cat(logits), torch.cat(features)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        passage_input_ids: Tensor | None = None,
        passage_attention_mask: Tensor | None = None,
        groups: Tensor | None = None,
        task: Tensor | None = None,
        texts_per_chunk: int | None = None,
        query_vectors: Tensor | None = None,
        passage_vectors: Tensor | None = None,
        query_states: Tensor | None = None,
        passage_states: Tensor | None = None,
        cached_gradients: bool = False,
        gather: bool = False,
    ) -> StudentOutput:
        """Embed queries and, for training, embed passages and score them.

        Args:
            input_ids: (B, L) int64, right-padded.
            attention_mask: (B, L), 1 for real tokens.
            passage_input_ids: (P, Lp) int64: the distinct passages of the batch.
            passage_attention_mask: (P, Lp).
            groups: (B, 1+K) int64: rows of the passages that belong to each query, the positive first.
            task: (B,) int64 branch of each query.
            texts_per_chunk: texts of like length encoded at once; fewer need less memory beside gradient
                checkpointing. None takes as many as make some thousand tokens.
            query_vectors: (B, D) embeddings in place of ``input_ids``.
            passage_vectors: (P, D) embeddings in place of ``passage_input_ids``.
            query_states: (B, L, D) hidden states in place of ``input_ids``, which :meth:`hidden` returned.
            passage_states: (P, Lp, D) hidden states in place of ``passage_input_ids``.
            cached_gradients: keep no activations of a chunk, and encode it once more when its gradient is there
                (:mod:`d2llm.student.cached_gradients`).
            gather: join the rows of all processes, each of which brings as many queries and passages a group
                (:mod:`d2llm.student.gathering`).

        Returns:
            StudentOutput: only ``embeddings`` unless passages are given.

        Raises:
            InputError: for passages without groups and task.
        """
        asked = Texts(query_vectors, query_states, input_ids, attention_mask)
        answers = Texts(passage_vectors, passage_states, passage_input_ids, passage_attention_mask)
        if not answers.given:
            return StudentOutput(embeddings=embeddings(self, [asked], texts_per_chunk, cached_gradients)[0])
        if groups is None or task is None:
            raise InputError("forward: passages also need groups and task")
        queries, passages = embeddings(self, [asked, answers], texts_per_chunk, cached_gradients)
        if not torch.is_autocast_enabled(queries.device.type):
            queries, passages = queries.to(self.head_dtype), passages.to(self.head_dtype)
        score = self._cached_groups if cached_gradients else self._groups
        logits, features = score(queries, passages, groups, task)
        rows = [queries, passages[groups[:, 0]], logits.float(), features.float(), task]
        queries, positives, logits, features, task = map(gathered, rows) if gather else rows
        return StudentOutput(
            embeddings=queries.float(),
            passage_embeddings=passages.float(),
            positive_embeddings=positives.float(),
            logits=logits,
            features=features,
            in_batch_logits=self.iem.score_all(queries, positives, task).float(),
        )


#: Fields of the configuration that change what a student computes and that its weights do not show.
_ESSENTIAL = ("hidden_layer", "lora_alpha", "pma_heads", "pma_ln", "pma_residual", "query_length", "passage_length")
#: Numbers of each tensor of the base that a fingerprint reads.
_BASE_SAMPLE = 64
#: Pairs of a query and a passage scored at once where gradients are cached.
_PAIRS_AT_ONCE = 8192
