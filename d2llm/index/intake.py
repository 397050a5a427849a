"""Passages on their way into an index: checked piece by piece, so that an iterator is never in memory as a whole."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d2llm.errors import InputError
from d2llm.index.inputs import Corpus, Passages, check_corpus
from d2llm.index.segment import Passage
from d2llm.index.snapshot import Snapshot
from d2llm.metadata import kinds
from d2llm.postings import keys_of

# Passages of an iterator that are checked at a time.
_PIECE = 4096


class Intake:
    """Checked passages, piece by piece as they are asked for: a sequence is one piece, checked as a whole.

    Args:
        passages, ids, metadata, vectors: as :func:`check_corpus` takes them; of an iterator of passages only some
            thousand are taken at a time, and it brings the ids and metadata itself.
        dim: model width D.
        snapshot: the index that they are added to, None for a new one.
        upsert: whether an id may be in the index already: what is there as it is is left out, what is not is replaced.

    Iterating raises:
        InputError: as :func:`check_corpus`; for an id that is in the index; for metadata of another kind than before.
    """

    def __init__(
        self,
        passages: Passages | Iterator[Any] | None,
        ids: Sequence[str] | None,
        metadata: Sequence[Mapping[str, Any]] | None,
        vectors: Any | None,
        dim: int,
        snapshot: Snapshot | None = None,
        upsert: bool = False,
    ) -> None:
        self._snapshot, self._upsert = snapshot, upsert
        self._first = 0 if snapshot is None else snapshot.manifest.rows
        #: Kind of each field of metadata, of the index and of the pieces so far.
        self.fields: dict[str, str] = {} if snapshot is None else snapshot.manifest.fields
        #: Positions of the passages that pieces so far replace.
        self.gone: list[int] = []
        #: How many will come, None where that is not known.
        self.total: int | None = None
        if not isinstance(passages, Iterator):
            corpus = check_corpus(passages, ids, metadata, vectors, dim, self._first)
            self._pieces: Iterable[Corpus] = [corpus]
            self.total = len(corpus)
        elif ids is not None or metadata is not None or vectors is not None:
            raise InputError(
                "passages: expected an iterator of texts, (id, text) pairs or (id, text, metadata) triples alone, "
                "got ids, metadata or vectors beside it"
            )
        else:
            self._pieces = self._taken(passages)

    def __iter__(self) -> Iterator[Corpus]:
        count = 0
        for piece in self._pieces:
            self.fields = kinds((passage.metadata for passage in piece.passages), self.fields, count)
            if self.fields and self._snapshot is not None and not self._snapshot.manifest.lookup:
                raise InputError("metadata: expected none, since an older version built this index; build it again")
            count += len(piece)
            yield piece if self._snapshot is None else self._changed(piece, self._snapshot)

    def _taken(self, passages: Iterator[Any]) -> Iterator[Corpus]:
        """An iterator in pieces, no id twice."""
        seen = np.zeros(0, np.int64)
        while rows := list(islice(passages, _PIECE)):
            try:
                piece = check_corpus(rows, None, None, None, 0, self._first + len(seen))
                seen = _joined(seen, piece.ids)
            except InputError as error:
                raise InputError(f"{error}; counted from passage {len(seen)} on") from None
            yield piece
        if not len(seen):
            raise InputError("passages: expected at least one, got an empty corpus")

    def _changed(self, piece: Corpus, snapshot: Snapshot) -> Corpus:
        """The passages of a piece that are not in the index as they are."""
        taken = snapshot.find(piece.ids)
        if taken and not self._upsert:
            raise InputError(f"ids: expected new ids, got {len(taken)} that the index holds, such as {min(taken)!r}")

        def as_it_is(passage: Passage) -> bool:
            same = piece.vectors is None and passage.text is not None and passage.id in taken
            return same and snapshot.passage(taken[passage.id]) == passage

        some = [passage for passage in piece.passages if not as_it_is(passage)]
        self.gone += [taken[passage.id] for passage in some if passage.id in taken]
        return Corpus(some, piece.vectors)


def check_passages(passages: Iterator[Any]) -> None:
    """Read an iterator to its end, for the faults that a build would come to after hours.

    Raises:
        InputError: as a build does.
    """
    for _ in Intake(passages, None, None, None, dim=0):
        pass


def cut(pieces: Iterable[Corpus], size: int) -> Iterator[Corpus]:
    """The same passages in pieces of ``size``, the last one shorter. Only a single piece may have vectors."""
    rest = Corpus([], None)
    for piece in pieces:
        whole = Corpus(rest.passages + piece.passages, piece.vectors)
        full = len(whole) - len(whole) % size
        yield from (whole[start : start + size] for start in range(0, full, size))
        rest = whole[full:]
    if len(rest):
        yield rest


def _joined(seen: NDArray[np.int64], ids: Sequence[str]) -> NDArray[np.int64]:
    """Keys of the ids so far, ascending, with those of more.

    Raises:
        InputError: for an id that was there before; of ten million, two share a key in one case of 400,000.
    """
    keys = keys_of(ids)
    places = np.searchsorted(seen, keys)
    known = (places < len(seen)) & (np.append(seen, 0)[places] == keys)
    if known.any():
        raise InputError(f"ids: expected distinct ids, got {ids[int(known.argmax())]!r} a second time")
    order = keys.argsort()
    return np.insert(seen, places[order], keys[order])
