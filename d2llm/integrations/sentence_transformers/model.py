"""A student as a SentenceTransformer whose similarity is its interaction module's."""

import tempfile
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Transformer
from torch import Tensor

import d2llm_kernels as dk
from d2llm import merging
from d2llm.errors import InputError
from d2llm.integrations.sentence_transformers.modules import IEM, PMAPooling
from d2llm.integrations.vectors import Embeddings, score_all, score_pairs
from d2llm.student import D2LLM, D2LLMConfig
from d2llm.tasks import TASKS, task_index
from d2llm.texts import check_texts


class D2LLMSentenceTransformer(SentenceTransformer):  # type: ignore[misc]
    """Transformer, PMA and IEM in a row, built by :meth:`from_student`, or loaded with ``trust_remote_code=True``.

    sentence-transformers asks for that of every class that is not its own; none of the folder's code is run. A plain
    ``SentenceTransformer`` loads the same folder, embeds the same and compares by the cosine.
    """

    @classmethod
    def from_student(
        cls,
        student: D2LLM,
        prompts: dict[str, str] | None = None,
        dtype: torch.dtype = torch.float32,
        device: str | None = None,
    ) -> "D2LLMSentenceTransformer":
        """A copy of a student, LoRA merged into its base.

        Args:
            student: stays as it is.
            prompts: texts that go before every ``query`` and every ``document``.
            dtype: number type of all weights, as there is one for a whole model.
            device: where it computes; None lets sentence-transformers choose.
        """
        config = student.config
        pooling = PMAPooling(student.dim, student.pma.num_heads, config.pma_ln, config.pma_residual)
        pooling.pma.load_state_dict(student.pma.state_dict())
        head = IEM(student.dim, config.iem_hidden, bm25_weight=config.bm25_weight)
        head.iem.load_state_dict(student.iem.state_dict())
        # The number of a layer is followed into the states, as the name of an output is.
        last = config.hidden_layer in (-1, student.backbone.config.num_hidden_layers)
        output: list[Any] = ["last_hidden_state"] if last else ["hidden_states", config.hidden_layer]
        with tempfile.TemporaryDirectory() as folder:
            merging.merged(student.backbone, dtype).save_pretrained(folder)
            student.tokenizer.save_pretrained(folder)
            transformer = Transformer(
                folder,
                model_kwargs={"dtype": dtype},
                # A template for chats would be put around every text otherwise.
                modality_config={"text": {"method": "forward", "method_output_name": output}},
                module_output_name="token_embeddings",
                processing_kwargs={"text": {"split_special_tokens": True}},
                query_length=config.query_length,
                document_length=config.passage_length,
                max_seq_length=config.passage_length,
            )
        # The folder is no name that anyone could load the base by.
        transformer.model.config._name_or_path = transformer.tokenizer.name_or_path = ""
        return cls(modules=[transformer, pooling, head], prompts=prompts, device=device).eval()

    def to_student(self) -> D2LLM:
        """A student that shares this model's weights, without LoRA; to be saved with ``save_base=True``.

        Raises:
            InputError: for a model that was not made of a student, or that has prompts, which a student has none of.
        """
        if any(self.prompts.values()):
            raise InputError(f"prompts: expected none, as a student has none, got {self.prompts}")
        head = self._head()
        transformer, pooling = self[0], self[1]
        output = transformer.modality_config["text"]["method_output_name"]
        config = D2LLMConfig(
            base_dtype=str(self.dtype).removeprefix("torch."),
            hidden_layer=output[1] if len(output) > 1 else -1,
            lora_r=0,
            pma_heads=pooling.num_heads,
            pma_ln=pooling.ln,
            pma_residual=pooling.residual,
            iem_hidden=head.hidden,
            query_length=transformer.query_length,
            passage_length=transformer.document_length,
            bm25_weight=head.bm25_weight,
        )
        student = D2LLM(config, transformer.model, transformer.tokenizer)
        student.pma, student.iem = pooling.pma, head.iem
        return student.eval()

    @property
    def iem(self) -> dk.IEM:
        """The interaction module.

        Raises:
            InputError: for a model without one.
        """
        return self._head().iem

    @property
    def similarity_task(self) -> str:
        """The branch that scores where none is named: ``asym`` or ``sym``; saved with the model."""
        return self._head().task

    @similarity_task.setter
    def similarity_task(self, task: str) -> None:
        self._head().task = TASKS[task_index(task)]

    def similarity(self, embeddings1: Embeddings, embeddings2: Embeddings, task: str | None = None) -> Tensor:
        """IEM logits (N1, N2) of every query with every passage.

        Args:
            embeddings1: N1 queries (N1, D), or one (D,).
            embeddings2: N2 passages (N2, D), or one (D,).
            task: ``asym`` or ``sym``; None takes :attr:`similarity_task`.

        Raises:
            InputError: for an unknown task, or vectors of another width.
        """
        return score_all(self.iem, embeddings1, embeddings2, task_index(task or self.similarity_task))

    def similarity_pairwise(self, embeddings1: Embeddings, embeddings2: Embeddings, task: str | None = None) -> Tensor:
        """IEM logits (N,) of the pairs ``(embeddings1[i], embeddings2[i])``; arguments as for :meth:`similarity`."""
        return score_pairs(self.iem, embeddings1, embeddings2, task_index(task or self.similarity_task))

    def preprocess(self, inputs: Any, prompt: str | None = None, **kwargs: Any) -> Any:
        """As of every model, once each text is known to be one.

        Raises:
            InputError: for an input that is no text, or an empty one.
        """
        return super().preprocess(check_texts(inputs, "inputs"), prompt=prompt, **kwargs)

    def _head(self) -> IEM:
        last = self[len(self) - 1]
        if not isinstance(last, IEM):
            raise InputError(
                f"model: expected an IEM as its last module, got {type(last).__name__}; "
                "D2LLMSentenceTransformer.from_student makes such a model"
            )
        return last
