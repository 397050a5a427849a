"""Texts to embeddings, returned in the order given."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from d2llm.compiling import is_single
from d2llm.errors import InputError
from d2llm.merging import inference_dtype, is_sharded, takes_turns
from d2llm.side_by_side import side_by_side
from d2llm.student import windows as in_windows
from d2llm.student.vector_file import VectorFile
from d2llm.texts import CPU_TOKENS, TOKEN_BUDGET, batches_by_length, check_sequence, pad, tokenize_ahead

if TYPE_CHECKING:
    from d2llm.student.modeling import D2LLM

KINDS = ("passage", "query")
_OUTPUTS = ("numpy", "torch")
#: Texts from which on a progress bar is shown unless told otherwise.
_BAR_FROM = 256


def encode(
    model: "D2LLM",
    texts: Sequence[str],
    kind: str = "passage",
    batch_size: int | None = None,
    show_progress: bool | None = None,
    convert_to: str = "numpy",
    normalize: bool = False,
    dtype: torch.dtype | None = None,
    out: str | os.PathLike[str] | None = None,
    windows: bool = False,
) -> Any:
    """Embeddings (N, D) float32 of N texts, in their order, as an array or a tensor.

    LoRA is merged into a copy of the weights that it adapts, which stays until the student is trained again. Texts of
    like length share a batch, which holds as many of them as keep the device busy.

    Args:
        model: the student; it computes in evaluation mode and is put back as it was.
        texts: N non-empty texts; longer ones are cut.
        kind: ``passage`` or ``query``: which length limit of the configuration applies.
        batch_size: most texts at once; None leaves it to their tokens.
        show_progress: None shows a bar for more than a few hundred texts.
        convert_to: ``numpy``, or ``torch`` for a tensor on the model's device.
        normalize: divide by the L2 norm (for cosine similarity; the interaction module wants it off).
        dtype: number type that the LLM computes in, such as ``torch.bfloat16``; None takes that of its weights, or
            float32 on a CPU that does not multiply theirs, or where its linear layers are in int8.
        out: file (.npy) to write the embeddings to some thousand at a time; what comes back is memory-mapped. The file
            appears when it is whole. Called again after a stop with the same student, texts and options, it goes on.
        windows: do not cut a text at the limit: read it in windows of that length, which overlap by a quarter, and pool
            the tokens of all. Memory does not grow with a text.

    Raises:
        InputError: for an empty list, an empty text, an unknown ``kind`` or ``convert_to``, a batch size below 1, an
            ``out`` that is no .npy file or that another process is writing, or ``windows`` of a student with a slow
            tokenizer or with weights shared among processes.
    """
    if kind not in KINDS:
        raise InputError(f"kind: expected one of {KINDS}, got {kind!r}")
    if convert_to not in _OUTPUTS:
        raise InputError(f"convert_to: expected one of {_OUTPUTS}, got {convert_to!r}")
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size: expected at least 1, got {batch_size}")
    if out is not None and convert_to != "numpy":
        raise InputError(f"convert_to: expected 'numpy' beside out, which is read as an array, got {convert_to!r}")
    if windows:
        in_windows.check(model)
    texts = check_sequence(texts)
    show = len(texts) >= _BAR_FROM if show_progress is None else show_progress
    if dtype is None:
        weights = torch.float32 if model.inference.int8 else model.backbone.get_input_embeddings().weight.dtype
        dtype = inference_dtype(weights, model.device)
    encoder = _Encoder(model, kind, batch_size, normalize, dtype, windows)
    if out is not None:
        with VectorFile(out, (len(texts), model.dim), encoder.key(texts)) as file:
            if file.done < len(texts):
                encoder.run(texts, file.write, show, start=file.done)
        return file.read()
    found = torch.empty(len(texts), model.dim, device=model.device if convert_to == "torch" else "cpu")

    def keep(first: int, vectors: Tensor) -> None:
        found[first : first + len(vectors)] = vectors

    encoder.run(texts, keep, show)
    return found if convert_to == "torch" else found.numpy()


@dataclass(frozen=True)
class _Encoder:
    """What decides the embeddings of texts."""

    model: "D2LLM"
    kind: str
    batch_size: int | None
    normalize: bool
    dtype: torch.dtype
    windows: bool

    def key(self, texts: Sequence[str]) -> str:
        """32 hex digits over the student, the options and the texts."""
        options = [self.model.fingerprint(), self.kind, self.normalize, str(self.dtype), *["windows"][: self.windows]]
        options += ["int8"][: self.model.inference.int8]
        digest = hashlib.sha256(json.dumps(options).encode())
        for text in texts:
            written = text.encode("utf-8", "surrogatepass")
            digest.update(len(written).to_bytes(8, "little") + written)
        return digest.hexdigest()[:32]

    def run(
        self, texts: Sequence[str], keep: Callable[[int, Tensor], None], show_progress: bool, start: int = 0
    ) -> None:
        """Hand the embeddings from number ``start`` on to ``keep``: the number of the first, (n, D) float32."""
        model = self.model
        limit = model.config.query_length if self.kind == "query" else model.config.passage_length
        was_training = model.training
        model.eval()
        try:
            bar = tqdm(
                total=len(texts), initial=start, desc=f"encode {self.kind}", unit="text", disable=not show_progress
            )
            with torch.inference_mode(), bar:
                if self.windows:
                    self._run_windows(texts, keep, limit, start, bar)
                    return
                embed = self._embed()
                for first, ids in tokenize_ahead(model.tokenizer, texts, limit, start):
                    keep(first, self._scaled(self._chunk(ids, embed, bar)))
        finally:
            model.train(was_training)

    def _run_windows(
        self, texts: Sequence[str], keep: Callable[[int, Tensor], None], limit: int, start: int, bar: Any
    ) -> None:
        backbone = self.model.inference.of(self.model.backbone, self.dtype)
        for first in range(start, len(texts), in_windows.TEXTS):
            some = [texts[i] for i in range(first, min(first + in_windows.TEXTS, len(texts)))]
            keep(first, self._scaled(in_windows.encode(self.model, backbone, some, limit, self.batch_size)))
            bar.update(len(some))

    def _scaled(self, vectors: Tensor) -> Tensor:
        return torch.nn.functional.normalize(vectors, dim=1) if self.normalize else vectors

    def _embed(self) -> Callable[[Tensor, Tensor], Tensor]:
        model, device = self.model, self.model.device
        u = model.pma.folded_queries()
        if is_sharded(model):
            autocast = torch.autocast(device.type, self.dtype, self.dtype != torch.float32)
            return autocast(lambda tokens, mask: model.embed(tokens, mask, u))
        backbone = model.inference.of(model.backbone, self.dtype)

        def embed(tokens: Tensor, mask: Tensor) -> Tensor:
            with torch.compiler.set_stance("force_eager") if is_single(tokens) else nullcontext():
                return model.embed(tokens, mask, u, backbone)

        return embed if model.inference.compiled else lambda tokens, mask: model.embed(tokens, mask, u, backbone)

    def _chunk(self, ids: list[list[int]], embed: Callable[[Tensor, Tensor], Tensor], bar: Any) -> Tensor:
        device = self.model.device
        found = torch.empty(len(ids), self.model.dim, device=device)
        tokens_at_once = CPU_TOKENS if device.type == "cpu" else TOKEN_BUDGET
        batches = list(batches_by_length([len(text) for text in ids], self.batch_size, tokens_at_once))

        @torch.inference_mode()
        def run(rows: list[int]) -> Tensor:
            tokens, mask = pad([ids[row] for row in rows], self.model.tokenizer.pad_token_id)
            return embed(tokens.to(device), mask.to(device))

        # Torch compiles in one thread.
        together = not (takes_turns(self.model) or self.model.inference.compiled)
        for rows, vectors in zip(
            batches, (side_by_side(run, batches, device) if together else map(run, batches)), strict=True
        ):
            found[torch.tensor(rows, device=device)] = vectors
            bar.update(len(rows))
        return found


def cosine_similarity(queries: np.ndarray | Tensor, passages: np.ndarray | Tensor) -> np.ndarray:
    """Cosine of every pair: (Nq, D) and (Np, D) -> (Nq, Np) float32; a zero vector has cosine 0.

    Raises:
        InputError: if the widths differ, or for NaN or infinity.
    """
    q, p = (np.asarray(x.cpu() if isinstance(x, Tensor) else x, dtype=np.float32) for x in (queries, passages))
    if q.ndim != 2 or p.ndim != 2 or q.shape[1] != p.shape[1]:
        raise InputError(f"passages: expected shapes (Nq, D) and (Np, D) of one width D, got {q.shape} and {p.shape}")
    for name, x in (("queries", q), ("passages", p)):
        if not np.isfinite(x).all():
            raise InputError(f"{name}: expected finite numbers, got NaN or infinity")
    return _unit(q) @ _unit(p).T


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(np.float32).tiny)
