"""The student's two heads as modules of sentence-transformers, under the names that its saved models point to."""

from pathlib import Path
from typing import Any

from sentence_transformers.base.modules.module import Module
from torch import Tensor

import d2llm_kernels as dk
from d2llm.errors import FormatError
from d2llm.files import atomic_path, make_folder, write_json
from d2llm.fusion import BM25_WEIGHT
from d2llm.student.weights import WEIGHTS
from d2llm.tasks import ASYM, TASKS, task_index
from d2llm.tensor_files import write_tensors


class _Head(Module):  # type: ignore[misc]
    """A module with a few options and some weights, in a folder of its own."""

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write options and weights; the latter as safetensors whatever is asked for."""
        folder = Path(output_path)
        make_folder(folder)
        weights = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        with atomic_path(folder / WEIGHTS) as target:
            write_tensors(weights, target)
        write_json(folder / self.config_file_name, self.get_config_dict())

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        **kwargs: Any,
    ) -> "_Head":
        """Read a module; arguments as for every module of sentence-transformers.

        Raises:
            ValueError: if there are no weights.
            FormatError: if an option is missing.
            RuntimeError: if the weights are not those of the module.
        """
        where: dict[str, Any] = {
            "subfolder": subfolder,
            "token": token,
            "cache_folder": cache_folder,
            "revision": revision,
            "local_files_only": local_files_only,
        }
        weights = cls.load_torch_weights(model_name_or_path, **where)
        config = cls.load_config(model_name_or_path, **where)
        if missing := sorted(set(cls.config_keys) - config.keys()):
            raise FormatError(f"{model_name_or_path}: {subfolder}/{cls.config_file_name}: no {', '.join(missing)}")
        head = cls(**config)
        head.load_state_dict(weights)
        return head


class PMAPooling(_Head):
    """Token embeddings to one embedding a text, by :class:`d2llm_kernels.PMA` (paper section 3.2).

    Args:
        dim: width D of the token embeddings.
        num_heads, ln, residual: of the PMA.
    """

    config_keys = ("dim", "num_heads", "ln", "residual")

    def __init__(self, dim: int, num_heads: int, ln: bool = True, residual: str = "seed") -> None:
        super().__init__()
        self.dim, self.num_heads, self.ln, self.residual = dim, num_heads, ln, residual
        self.pma = dk.PMA(dim, num_heads, ln=ln, residual=residual)

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Add ``sentence_embedding`` (B, D).

        ``token_embeddings`` are (B, L, D) with an ``attention_mask`` (B, L), or (1, T, D), the texts one after the
        other, with their bounds ``cu_seq_lens_q`` (B+1,).
        """
        tokens: Tensor = features["token_embeddings"]
        bounds = features.get("cu_seq_lens_q")
        if bounds is None:
            features["sentence_embedding"] = self.pma(tokens, features["attention_mask"])
        else:
            features["sentence_embedding"] = self.pma(tokens[0], cu_seqlens=bounds)
        return features

    def get_embedding_dimension(self) -> int:
        """Width D of an embedding."""
        return self.dim


class IEM(_Head):
    """The interaction module, :class:`d2llm_kernels.IEM`, at the end of a model: embeddings pass it as they are.

    Args:
        dim: width D of the embeddings.
        hidden: width F.
        task: branch that scores where none is named: ``asym`` or ``sym``.
        bm25_weight: what BM25 weighs beside it in a hybrid search, kept for the student's sake.

    Raises:
        InputError: for an unknown task.
    """

    config_keys = ("dim", "hidden", "task", "bm25_weight")

    def __init__(self, dim: int, hidden: int = 512, task: str = ASYM, bm25_weight: float = BM25_WEIGHT) -> None:
        super().__init__()
        self.dim, self.hidden, self.bm25_weight = dim, hidden, bm25_weight
        self.task = TASKS[task_index(task)]
        self.iem = dk.IEM(dim, hidden, num_tasks=len(TASKS))

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """The features as they came."""
        return features
