"""Hidden states of a run's texts, computed once: where the base learns nothing an epoch needs no forward pass of it.

They lie in the run's folder in half precision and are mapped into memory, so that all of them need no room there.
"""

import hashlib
import shutil
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from d2llm.backbone import weights_fingerprint
from d2llm.checkpoints import check_settings
from d2llm.data.example import Example
from d2llm.errors import InputError
from d2llm.files import atomic_path, write_json
from d2llm.student import D2LLM
from d2llm.student.configuration import BASE_DTYPES
from d2llm.texts import batches_by_length, pad, tokenize

#: Folder of the states, inside the run's, and the files in it: (T, D) numbers, and what they are of.
FOLDER = "states"
_STATES, _ORIGIN = "states.bin", "states.json"


@dataclass(frozen=True)
class _Texts:
    """Distinct texts of a kind, as rows of the states."""

    rows: dict[str, int]
    ids: list[list[int]]
    #: (N + 1,) where each text begins among the tokens of all.
    starts: np.ndarray

    @classmethod
    def of(cls, student: D2LLM, texts: Iterable[str], limit: int, start: int) -> "_Texts":
        rows = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        ids = tokenize(student.tokenizer, list(rows), limit)
        return cls(rows, ids, start + np.cumsum([0, *map(len, ids)]))


class TokenStates:
    """Hidden states of queries and passages by text, in place of their tokens."""

    def __init__(self, queries: _Texts, passages: _Texts, states: Tensor, dtype: torch.dtype) -> None:
        """Args: the texts, their states (T, D) in half precision, and the number type in which they are given."""
        self._texts = {"query": queries, "passage": passages}
        self._states = states
        self._dtype = dtype

    @classmethod
    def kept(
        cls, student: D2LLM, examples: Iterable[Example], folder: Path, dtype: torch.dtype | None = None
    ) -> "TokenStates":
        """The states of every text of ``examples``, computed now unless they lie in the folder already.

        They are kept in the number type of the base, float32 in float16.

        Args:
            student: one whose base learns nothing.
            examples: what a run trains on and is watched on.
            folder: of the run.
            dtype: autocast the base to it, as the run does; None computes as its weights are.

        Raises:
            InputError: for a student whose base or LoRA learns, states beyond float16's range, or too little disk.
            MismatchError: where what lies there is of other texts, another base or another number type.
        """
        config = student.config
        if config.lora_r or config.train_base:
            raise InputError(
                "run.cache_states: expected a base that learns nothing (student.lora_r=0, student.train_base=false), "
                f"since its states would change, got lora_r {config.lora_r} and train_base {config.train_base}"
            )
        examples = list(examples)
        queries = _Texts.of(student, (e.query for e in examples), config.query_length, 0)
        held = (passage for e in examples for passage in e.passages)
        passages = _Texts.of(student, held, config.passage_length, queries.starts[-1])
        computed = BASE_DTYPES[config.base_dtype]
        stored = torch.bfloat16 if computed == torch.bfloat16 else torch.float16
        shape = int(passages.starts[-1]), student.dim
        origin = {
            "base": weights_fingerprint(student.backbone),
            "hidden_layer": config.hidden_layer,
            "texts": hashlib.sha256(repr((queries.ids, passages.ids)).encode()).hexdigest()[:16],
            "shape": shape,
            "dtype": str(stored).removeprefix("torch."),
            "autocast": str(dtype).removeprefix("torch."),
        }
        path = folder / FOLDER
        if path.exists():
            check_settings(path / _ORIGIN, origin)
        else:
            _check_room(folder, shape[0] * shape[1] * stored.itemsize)
            with atomic_path(path) as temporary:
                temporary.mkdir()
                states = _mapped(temporary / _STATES, shape, stored, shared=True)
                _fill(states, student, (queries, passages), dtype)
                write_json(temporary / _ORIGIN, origin)
        return cls(queries, passages, _mapped(path / _STATES, shape, stored, shared=False), computed)

    def inputs(self, queries: Sequence[str], passages: Sequence[str]) -> dict[str, Tensor]:
        """What stands in a batch in place of tokens: states (N, L, D) and masks (N, L) of queries and passages."""
        asked, asked_mask = self._padded("query", queries)
        held, mask = self._padded("passage", passages)
        return {
            "query_states": asked,
            "attention_mask": asked_mask,
            "passage_states": held,
            "passage_attention_mask": mask,
        }

    @torch.inference_mode()
    def embeddings(
        self, student: D2LLM, queries: Sequence[str], passages: Sequence[str], dtype: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor]:
        """(N, D) embeddings of queries and passages by the student's pooling as it is now, autocast to ``dtype``."""
        found = []
        with torch.autocast(student.device.type, dtype) if dtype is not None else nullcontext():
            u = student.pma.folded_queries()
            for kind, texts in (("query", queries), ("passage", passages)):
                result = torch.empty(len(texts), student.dim, device=student.device)
                for rows in batches_by_length(self._lengths(kind, texts)):
                    states, mask = self._padded(kind, [texts[row] for row in rows])
                    result[rows] = student.pool(states.to(student.device), mask.to(student.device), u)
                found.append(result)
        return found[0], found[1]

    def _lengths(self, kind: str, texts: Sequence[str]) -> list[int]:
        known = self._texts[kind]
        return [len(known.ids[known.rows[text]]) for text in texts]

    def _padded(self, kind: str, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        known = self._texts[kind]
        missing = [text for text in texts if text not in known.rows]
        if missing:
            raise InputError(f"{kind} states: {len(missing)} texts were not encoded, such as {missing[0][:60]!r}")
        rows = [known.rows[text] for text in texts]
        parts = [self._states[known.starts[row] : known.starts[row + 1]].to(self._dtype) for row in rows]
        return pad_sequence(parts, batch_first=True), pad_sequence(
            [torch.ones(len(part), dtype=torch.int64) for part in parts], batch_first=True
        )


def _mapped(file: Path, shape: tuple[int, int], dtype: torch.dtype, shared: bool) -> Tensor:
    """A tensor in a file; what is written to a shared one, which is made where it is not there, is written there."""
    return torch.from_file(str(file), shared=shared, size=shape[0] * shape[1], dtype=dtype).view(shape)


def _check_room(folder: Path, needed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"run.cache_states: expected {needed / 1e9:.1f} GB of disk for the states of all texts in {folder}, got "
            f"{free / 1e9:.1f} GB; shorten the texts (student.passage_length), or set it to false"
        )


@torch.inference_mode()
def _fill(states: Tensor, student: D2LLM, kinds: Iterable[_Texts], dtype: torch.dtype | None) -> None:
    """Write the states of every text to its place."""
    device, training = student.device, student.training
    student.eval()
    autocast = torch.autocast(device.type, dtype) if dtype is not None else nullcontext()
    try:
        with autocast, tqdm(total=len(states), desc="states", unit="token", unit_scale=True, mininterval=1) as bar:
            for texts in kinds:
                for rows in batches_by_length([len(ids) for ids in texts.ids]):
                    tokens, mask = pad([texts.ids[row] for row in rows], student.tokenizer.pad_token_id)
                    hidden = student.hidden(tokens.to(device), mask.to(device))
                    for row, found in zip(rows, hidden.to("cpu", states.dtype), strict=True):
                        start, end = texts.starts[row : row + 2]
                        states[start:end] = found[: end - start]
                        if not states[start:end].isfinite().all():
                            raise InputError(
                                f"run.cache_states: expected states within {states.dtype}'s range, got larger ones; "
                                "set student.base_dtype=bfloat16"
                            )
                        bar.update(int(end - start))
    finally:
        student.train(training)
