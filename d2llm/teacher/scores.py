"""Teacher scores on disk: raw logits of pairs and feature cosines of training groups, keyed by the texts.

One safetensors file. Its metadata holds the header (which model, revision, adapter, templates, answer
tokens and number type made the scores) and a SHA-256 over header and tensors. Tensors:

* ``pair_ids`` (P, 16) uint8: query id and passage id of every judged pair, 8 bytes each;
* ``pair_logits`` (P, 2): raw logits [yes, no];
* ``group_query_ids`` (G, 8) uint8, ``group_passage_ids`` (S, 8) uint8, ``group_sizes`` (G,) int64: the
  groups [positive, hard negatives] whose features were compared, S being the sum of their sizes;
* ``group_cosines``: for every group the upper triangle of its cosine matrix, diagonal left out.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from d2llm.errors import FormatError, InputError, MismatchError, MissingError
from d2llm.files import atomic_path, parse_json
from d2llm.teacher.model import check_temperature, yes_probability
from d2llm.tensor_files import writing

_METADATA = "d2llm_teacher"
#: Fields that must agree before scores are mixed; number types may differ, they change the rounding alone.
IDENTITY = ("engine", "adapter", "num_layers", "query_length", "passage_length")
#: Those that must where the weights' fingerprint is not known on both sides: one folder has many names.
_NAMES = ("model", "revision")
#: Those by task, which must agree on the tasks that both sides have.
_BY_TASK = ("templates", "answers")
_ID_BYTES = 8
#: Cosines, and what rounding to float16 adds.
_LARGEST_COSINE = 1.001
#: Number types and shapes of the tensors of a file; a text stands for any length.
_FLOATS = ("F32", "F16")
_TENSORS: dict[str, tuple[tuple[str, ...], tuple[int | str, ...]]] = {
    "pair_ids": (("U8",), ("P", 2 * _ID_BYTES)),
    "pair_logits": (_FLOATS, ("P", 2)),
    "group_query_ids": (("U8",), ("G", _ID_BYTES)),
    "group_passage_ids": (("U8",), ("S", _ID_BYTES)),
    "group_sizes": (("I64",), ("G",)),
    "group_cosines": (_FLOATS, ("C",)),
}
_ID = re.compile(rf"[0-9a-f]{{{2 * _ID_BYTES}}}")

Pair = tuple[str, str]
Group = tuple[str, tuple[str, ...]]


class ScoreTable:
    """What a teacher said of pairs (``logits``) and of groups (``relation``), by the ids of the texts.

    Args:
        header: what made the scores; anything that JSON can hold.
        logits: (yes, no) raw logits by (query id, passage id).
        relations: (n, n) cosine matrix of the teacher's features by (query id, passage ids). The upper
            triangle is kept; the matrix is symmetric and its diagonal 1.

    Raises:
        InputError: for logits that are not finite, cosines that are none, a matrix that is not (n, n), an id that is
            not one of :func:`d2llm.data.example.text_id`, or a header that JSON cannot hold.
    """

    def __init__(
        self,
        header: Mapping[str, Any],
        logits: Mapping[Pair, tuple[float, float]] | None = None,
        relations: Mapping[Group, np.ndarray] | None = None,
    ) -> None:
        try:
            # As it will be read back: lists for tuples.
            self.header: dict[str, Any] = json.loads(json.dumps(dict(header)))
        except (TypeError, ValueError) as error:
            raise InputError(f"header: expected what JSON can hold ({error})") from None
        self._logits = dict(logits or {})
        _check_finite("logits", np.array(list(self._logits.values()), np.float32).reshape(-1, 2), self._logits)
        self._relations: dict[Group, np.ndarray] = {}
        self._groups: dict[str, list[tuple[str, ...]]] = {}
        for (query, passages), cosines in (relations or {}).items():
            if np.shape(cosines) != (len(passages), len(passages)):
                raise InputError(
                    f"relations: expected a ({len(passages)}, {len(passages)}) matrix, got {np.shape(cosines)}"
                )
            upper = np.triu(np.asarray(cosines, np.float32), 1)
            if not (np.abs(upper) <= _LARGEST_COSINE).all():
                raise InputError(f"relations: expected cosines from -1 to 1, those of {query} are not")
            self._relations[query, tuple(passages)] = upper + upper.T + np.eye(len(passages), dtype=np.float32)
            self._groups.setdefault(query, []).append(tuple(passages))
        for part in {part for pair in self._logits for part in pair} | {
            part for query, passages in self._relations for part in (query, *passages)
        }:
            if not _ID.fullmatch(part):
                raise InputError(f"ids: expected {2 * _ID_BYTES} hex digits, got {part!r}")

    def __len__(self) -> int:
        return len(self._logits)

    def __contains__(self, pair: Pair) -> bool:
        return pair in self._logits

    def logits(self, query_id: str, passage_id: str) -> tuple[float, float] | None:
        """Raw (yes, no) logits of a pair, or None where the teacher has not judged it."""
        return self._logits.get((query_id, passage_id))

    def probability(self, query_id: str, passage_id: str, temperature: float = 1.0) -> float | None:
        """Yes-probability s of a pair, or None where the teacher has not judged it (paper equation 3).

        Raises:
            InputError: for a temperature that is not a positive number.
        """
        check_temperature(temperature)
        found = self._logits.get((query_id, passage_id))
        return None if found is None else float(yes_probability(np.array(found, np.float32), temperature))

    def relation(self, query_id: str, passage_ids: Sequence[str]) -> np.ndarray | None:
        """(n, n) float32 cosines of the teacher's features, or None where any of the passages was not compared."""
        for group in self._groups.get(query_id, ()):
            rows = {passage: i for i, passage in enumerate(group)}
            if all(passage in rows for passage in passage_ids):
                chosen = [rows[passage] for passage in passage_ids]
                return self._relations[query_id, group][np.ix_(chosen, chosen)]
        return None

    def items(self) -> Iterable[tuple[Pair, tuple[float, float]]]:
        """Every judged pair with its raw (yes, no) logits."""
        return self._logits.items()

    def relations(self) -> Iterable[tuple[Group, np.ndarray]]:
        """Every compared group with its (n, n) cosine matrix."""
        return self._relations.items()

    def check_same_teacher(self, header: Mapping[str, Any]) -> None:
        """Make sure that these scores may be mixed with, or taken for, those of the teacher of ``header``.

        Raises:
            MismatchError: naming the first field that differs.
        """
        known = self.header.get("base") is not None and header.get("base") is not None
        names = (*IDENTITY, *(("base",) if known else _NAMES))
        fields: dict[str, tuple[Any, Any]] = {name: (self.header.get(name), header.get(name)) for name in names}
        # Prompts of before it was kept were of version 1.
        fields["prompt"] = self.header.get("prompt", 1), header.get("prompt", 1)
        for name in _BY_TASK:
            mine, other = self.header.get(name) or {}, header.get(name) or {}
            tasks = sorted(mine.keys() & other.keys() or mine.keys() | other.keys())
            fields[name] = [mine.get(task) for task in tasks], [other.get(task) for task in tasks]
        for field, (mine, other) in fields.items():
            if mine != other:
                raise MismatchError(f"teacher scores: {field}: made with {mine!r}, expected {other!r}")

    def save(self, path: str | os.PathLike[str], dtype: str = "float32") -> None:
        """Write the table atomically; ``dtype`` float32 keeps every bit, float16 halves the file.

        Raises:
            InputError: for another dtype, or logits that float16 cannot hold.
            OSError: if the disk fills; what was there stays.
        """
        if dtype not in ("float32", "float16"):
            raise InputError(f"dtype: expected float32 or float16, got {dtype!r}")
        with np.errstate(over="ignore"):
            logits = np.array(list(self._logits.values()), np.float32).reshape(-1, 2).astype(dtype)
        _check_finite(f"logits as {dtype}", logits, self._logits)
        groups = list(self._relations)
        triangles = [cosines[np.triu_indices(len(cosines), 1)] for cosines in self._relations.values()]
        tensors = {
            "pair_ids": _pack([part for pair in self._logits for part in pair]).reshape(-1, 2 * _ID_BYTES),
            "pair_logits": logits,
            "group_query_ids": _pack([query for query, _ in groups]),
            "group_passage_ids": _pack([passage for _, passages in groups for passage in passages]),
            "group_sizes": np.array([len(passages) for _, passages in groups], np.int64),
            "group_cosines": np.concatenate([np.empty(0, np.float32), *triangles]).astype(dtype),
        }
        header = {**self.header, "dtype": dtype}
        # One entry, as safetensors writes several in any order and the same table shall give the same bytes.
        about = json.dumps({"header": header, "sha256": _checksum(header, tensors)}, sort_keys=True)
        with atomic_path(path) as temporary, writing(Path(path)):
            save_file(tensors, temporary, metadata={_METADATA: about})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "ScoreTable":
        """Read a table.

        Raises:
            MissingError: if there is no such file.
            FormatError: if it is not a score table, or truncated or altered.
        """
        if not Path(path).is_file():
            raise MissingError(f"teacher scores: {path}: file not found")
        try:
            with safe_open(os.fspath(path), framework="numpy") as file:
                about = parse_json((file.metadata() or {})[_METADATA])
                _check_tensors(file)
                tensors = {name: file.get_tensor(name) for name in _TENSORS}
            if not isinstance(about, dict) or not isinstance(about.get("header"), dict):
                raise FormatError("it has no header")
            if about.get("sha256") != _checksum(about["header"], tensors):
                raise FormatError("its checksum differs")
            return cls(about["header"], *_unpack_tables(tensors))
        except (SafetensorError, KeyError, ValueError) as error:
            raise FormatError(f"teacher scores: {path}: not a score table, or altered ({error})") from None


def _check_finite(name: str, values: np.ndarray, keys: Iterable[Any]) -> None:
    """``values`` (N, n), a row for each of ``keys``."""
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        raise InputError(f"{name}: expected finite numbers, those of {list(keys)[int(finite.argmin())]} are not")


def _check_tensors(file: Any) -> None:
    """Make sure by the header of an open file that it holds the tensors of a table, before any is read."""
    if set(file.keys()) != _TENSORS.keys():
        raise FormatError(f"expected the tensors {', '.join(_TENSORS)}, got {sorted(file.keys())!s:.200}")
    lengths: dict[str, int] = {}
    for name, (kinds, shape) in _TENSORS.items():
        part = file.get_slice(name)
        kind, found = part.get_dtype(), tuple(part.get_shape())
        expected = shape
        if len(found) == len(shape):
            # A letter is the length that it meets first.
            expected = tuple(
                lengths.setdefault(n, f) if isinstance(n, str) else n for n, f in zip(shape, found, strict=True)
            )
        if kind not in kinds or found != expected:
            raise FormatError(f"{name}: expected {' or '.join(kinds)} {expected}, got {kind} {found!s:.200}")


def _checksum(header: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        digest.update(np.ascontiguousarray(tensor).tobytes())
    return digest.hexdigest()


def _unpack_tables(tensors: dict[str, np.ndarray]) -> tuple[dict[Pair, tuple[float, float]], dict[Group, np.ndarray]]:
    ids = _unpack(tensors["pair_ids"].reshape(-1, _ID_BYTES))
    values = tensors["pair_logits"].astype(np.float32).tolist()
    logits = {pair: (yes, no) for pair, (yes, no) in zip(zip(ids[::2], ids[1::2], strict=True), values, strict=True)}
    relations: dict[Group, np.ndarray] = {}
    passages = _unpack(tensors["group_passage_ids"])
    cosines = tensors["group_cosines"].astype(np.float32)
    sizes = tensors["group_sizes"]
    if (sizes < 1).any() or (sizes > len(passages)).any():
        raise FormatError("it has a group of no passage, or of more than there are")
    if sizes.sum() != len(passages) or (sizes * (sizes - 1) // 2).sum() != len(cosines):
        raise FormatError("the sizes of its groups do not add up")
    start = offset = 0
    for query, size in zip(_unpack(tensors["group_query_ids"]), sizes.tolist(), strict=True):
        matrix = np.zeros((size, size), np.float32)
        upper = np.triu_indices(size, 1)
        matrix[upper] = cosines[offset : offset + len(upper[0])]
        relations[query, tuple(passages[start : start + size])] = matrix
        start, offset = start + size, offset + len(upper[0])
    if len(logits) != len(values) or len(relations) != len(sizes):
        raise FormatError("it holds the same pair or group twice")
    return logits, relations


def _pack(ids: Sequence[str]) -> np.ndarray:
    return np.frombuffer(bytes.fromhex("".join(ids)), np.uint8).reshape(-1, _ID_BYTES)


def _unpack(packed: np.ndarray) -> list[str]:
    return [row.tobytes().hex() for row in np.ascontiguousarray(packed)]
