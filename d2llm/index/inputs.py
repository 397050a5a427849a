"""Checks of what a caller hands to the index: passages, ids, metadata, vectors and k."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from d2llm.errors import InputError, shown
from d2llm.index.segment import Passage
from d2llm.metadata import check_metadata
from d2llm.texts import check_texts

#: Texts, (id, text) pairs, or (id, text, metadata) triples.
Passages: TypeAlias = Sequence[str] | Sequence[tuple[str, str]] | Sequence[tuple[str, str, Mapping[str, Any]]]


@dataclass(frozen=True)
class Corpus:
    """Checked input of a build or an append: N passages, and N vectors where they have no texts, or were given."""

    passages: list[Passage]
    vectors: Any | None

    def __len__(self) -> int:
        return len(self.passages)

    def __getitem__(self, rows: slice) -> "Corpus":
        return Corpus(self.passages[rows], None if self.vectors is None else self.vectors[rows])

    @property
    def ids(self) -> list[str]:
        """Of every passage."""
        return [passage.id for passage in self.passages]

    @property
    def texts(self) -> list[str]:
        """Of every passage; none where there are vectors alone."""
        return [passage.text for passage in self.passages if passage.text is not None]


def check_corpus(
    passages: Passages | None,
    ids: Sequence[str] | None,
    metadata: Sequence[Mapping[str, Any]] | None,
    vectors: Any | None,
    dim: int,
    first: int,
) -> Corpus:
    """Check passages, ids, metadata and vectors against each other.

    Args:
        passages: N texts, N (id, text) pairs, N (id, text, metadata) triples, or None where only ``vectors`` are given.
        ids: N distinct ids; None takes those of the pairs, or running numbers from ``first``.
        metadata: N mappings of fields to values; None takes those of the triples, or none.
        vectors: (N, dim) floating array or tensor, or None. Its values are checked shard by shard.
        dim: model width D.
        first: the running number of the first passage.

    Raises:
        InputError: naming the argument, what was expected and what came.
    """
    if passages is None and vectors is None:
        raise InputError("passages: expected texts, or None with vectors given; got neither")
    paired, texts, described = _texts(passages)
    if paired is not None and ids is not None:
        raise InputError("ids: expected None where passages are (id, text) pairs, got both")
    if described is not None and metadata is not None:
        raise InputError("metadata: expected None where passages are (id, text, metadata) triples, got both")
    count = len(texts) if texts is not None else None
    if vectors is not None:
        shape = tuple(getattr(vectors, "shape", ()))
        if len(shape) != 2 or shape[1] != dim or count not in (None, shape[0]):
            raise InputError(
                f"vectors: expected an array ({'N' if count is None else count}, {dim}), got {_what(vectors)}"
            )
        count = shape[0]
    if not count:
        raise InputError("passages: expected at least one, got an empty corpus")
    chosen = paired if paired is not None else ids
    names = [str(first + i) for i in range(count)] if chosen is None else check_ids(chosen)
    if len(names) != count:
        raise InputError(f"ids: expected {count}, one a passage, got {len(names)}")
    given = list(metadata) if metadata is not None else described or [{}] * count
    if len(given) != count:
        raise InputError(f"metadata: expected {count}, one a passage, got {len(given)}")
    fields = [check_metadata(each, f"metadata[{i}]") for i, each in enumerate(given)]
    contents: Sequence[str | None] = [None] * count if texts is None else texts
    return Corpus(list(map(Passage, names, contents, fields)), vectors)


def check_ids(ids: Sequence[str]) -> list[str]:
    """The ids as a list.

    Raises:
        InputError: for an id that is not a non-empty string, or occurs twice.
    """
    names = [ids] if isinstance(ids, str) else list(ids)
    seen: set[str] = set()
    for i, name in enumerate(names):
        if not isinstance(name, str) or not name:
            raise InputError(f"ids[{i}]: expected a non-empty string, got {name!r}")
        if name in seen:
            raise InputError(f"ids[{i}]: expected distinct ids, got {name!r} a second time")
        seen.add(name)
    return names


def check_vectors(name: str, vectors: Any, dim: int, first: int = 0) -> Tensor:
    """The vectors as a float32 CPU tensor (n, dim).

    Args:
        first: number of the first row, for the message.

    Raises:
        InputError: for a wrong shape, or NaN or infinity in a row.
    """
    shape = tuple(getattr(vectors, "shape", ()))
    if len(shape) != 2 or shape[1] != dim:
        raise InputError(f"{name}: expected an array (N, {dim}), got {_what(vectors)}")
    checked = torch.as_tensor(vectors).detach().to("cpu", torch.float32)
    if not all_finite(checked):
        row = first + int(checked.isfinite().all(dim=1).logical_not().nonzero()[0])
        raise InputError(f"{name}[{row}]: expected finite values, got NaN or infinity")
    return checked


def all_finite(values: Tensor) -> bool:
    """Whether there is neither NaN nor infinity; in one pass, where ``isfinite`` takes several and makes tensors."""
    return not values.numel() or bool(torch.stack(torch.aminmax(values)).isfinite().all())


def check_count(name: str, value: int, low: int, high: int | None = None) -> int:
    """The integer, if it lies in [low, high].

    Raises:
        InputError: otherwise.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        expected = f"at least {low}" if high is None else f"{low} to {high}"
        raise InputError(f"{name}: expected an integer, {expected}, got {value!r}")
    return value


def _texts(passages: Passages | None) -> tuple[list[str] | None, list[str] | None, list[Any] | None]:
    """Split passages into (ids or None, texts or None, metadata or None)."""
    if passages is None:
        return None, None, None
    if isinstance(passages, str):
        raise InputError("passages: expected a sequence of texts, got one string")
    rows: list[Any] = list(passages)
    if not rows or isinstance(rows[0], str):
        return None, check_texts(rows, "passages", none=True), None
    for i, row in enumerate(rows):
        if not isinstance(row, (tuple, list)) or len(row) not in (2, 3):
            expected = "a text, an (id, text) pair or an (id, text, metadata) triple, all alike"
            raise InputError(f"passages[{i}]: expected {expected}, got {shown(row)}")
    described = [row[2] if len(row) == 3 else {} for row in rows] if any(len(row) == 3 for row in rows) else None
    return check_ids([row[0] for row in rows]), check_texts([row[1] for row in rows], "passages"), described


def _what(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else f"shape {tuple(shape)}"
