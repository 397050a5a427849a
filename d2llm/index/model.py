"""What the index needs of a model, and the interaction head that travels with the index."""

import hashlib
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from d2llm.errors import FormatError, InputError
from d2llm.fusion import BM25_WEIGHT
from d2llm.tensor_files import write_tensors
from d2llm_kernels import IEM


@runtime_checkable
class Encoder(Protocol):
    """A model that turns N texts into (N, D) vectors and holds the head that compares them; D2LLM is one."""

    iem: IEM

    def encode(self, texts: Sequence[str], *, kind: str, batch_size: int | None, show_progress: bool) -> Any: ...

    def fingerprint(self) -> str: ...


Model: TypeAlias = Encoder | IEM


def head_of(model: Model) -> IEM:
    """The interaction module of a model; a bare IEM is its own.

    Raises:
        InputError: if the model holds none.
    """
    head = model if isinstance(model, IEM) else getattr(model, "iem", None)
    if not isinstance(head, IEM):
        raise InputError(f"model: expected a D2LLM or an IEM, got {type(model).__name__}")
    return head


def fingerprint_of(model: Model) -> str:
    """What tells one model from another: its own fingerprint, or a digest of a bare IEM's weights."""
    return f"iem-{weights_digest(model)}" if isinstance(model, IEM) else model.fingerprint()


def bm25_weight(model: Model | None) -> float:
    """What BM25 weighs beside the interaction module: what the model was saved with, or the default."""
    return getattr(getattr(model, "config", None), "bm25_weight", BM25_WEIGHT)


def weights_digest(head: IEM) -> str:
    """16 hex digits of SHA-256 over the head's weights."""
    return hashlib.sha256(save(_weights(head))).hexdigest()[:16]


def width(head: IEM) -> int:
    """Model width D that the head takes."""
    return head.linear1.in_features // 2


def save_head(head: IEM, path: Path) -> None:
    """Write the head's weights as safetensors.

    Raises:
        OSError: if the disk fills.
    """
    write_tensors(_weights(head), path)


def load_head(path: Path) -> IEM:
    """Rebuild a head from :func:`save_head`; its sizes follow from the weights.

    Raises:
        FormatError: if the file is no such head.
    """
    try:
        weights = load_file(path)
        hidden, pair = weights["linear1.weight"].shape
        tasks = sum(name.startswith("proj") and name.endswith(".weight") for name in weights)
        head = IEM(pair // 2, hidden=hidden, num_tasks=tasks).to(weights["linear1.weight"].dtype)
        head.load_state_dict(weights)
    except (SafetensorError, KeyError, RuntimeError, ValueError, OSError) as error:
        raise FormatError(f"{path}: not an interaction head ({error})") from None
    return head.eval().requires_grad_(False)


def project(head: IEM, vectors: Tensor, side: str) -> Tensor:
    """Project (N, D) vectors to the head's (N, F) inputs, on its device and in its dtype.

    Args:
        side: ``"query"`` or ``"passage"``; the head is order-sensitive (paper section 3, IEM).
    """
    weight = head.linear1.weight
    inputs = vectors.to(weight.device, weight.dtype)
    return head.project_queries(inputs) if side == "query" else head.project_passages(inputs)


def check_windows(model: Model) -> None:
    """Make sure that a model's ``encode`` takes ``windows=True``.

    Raises:
        InputError: if it does not.
    """
    if not isinstance(model, Encoder) or "windows" not in inspect.signature(model.encode).parameters:
        raise InputError(f"windows: expected a model that encodes texts in windows, got {type(model).__name__}")


def encode(model: Model | None, texts: Sequence[str], kind: str, batch_size: int | None, windows: bool = False) -> Any:
    """Vectors (N, D) of texts, as the model gives them; with ``windows`` none of them cut.

    Raises:
        InputError: if there is no model that encodes texts.
    """
    if not isinstance(model, Encoder):
        raise InputError("model: expected a model that encodes texts; open the index with model=, or pass vectors")
    with torch.inference_mode():
        options: dict[str, Any] = {"windows": True} if windows else {}
        return model.encode(texts, kind=kind, batch_size=batch_size, show_progress=False, **options)


def _weights(head: IEM) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in head.state_dict().items()}
