"""Fitting a surrogate to an index, and certifying it on queries that the fit has not seen."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from d2llm.data.docstrings import first_sentence
from d2llm.errors import InputError
from d2llm.files import atomic_path
from d2llm.index.certificate import Certificate
from d2llm.index.covering import CERTIFIED_MODES, Certified, Covering, write_maps, write_rows
from d2llm.index.records import CERTIFICATE, MAPS, FileRecord, SurrogateRecord
from d2llm.index.searching import Searching
from d2llm.index.snapshot import Snapshot
from d2llm.index.surrogate import Maps, fit
from d2llm.tensor_files import read_tensors
from d2llm_kernels import IEM

#: Queries that a fit uses at most, and those that it is certified on: the rest, at most so many.
FITTED, CERTIFIED = 1000, 1000
#: Passages of each certified query that are kept: promises are for so many hits at most.
_KEPT = 100
# Passages that a fit sees.
_POOL = 16384
# Characters that a query made of a passage may have.
_SENTENCE = 160


def pseudo_queries(snapshot: Snapshot, seed: int) -> list[str]:
    """First sentences of some passages, drawn at random.

    Raises:
        InputError: if the index holds no texts.
    """
    if not snapshot.manifest.texts:
        raise InputError("queries: expected some, since this index has no texts to make them of; got none")
    draw = torch.Generator().manual_seed(seed)
    places = snapshot.live[torch.randperm(snapshot.size, generator=draw)[: FITTED + CERTIFIED]]
    texts = (snapshot.passage(place).text or "" for place in places.tolist())
    return [first_sentence(text)[:_SENTENCE] for text in texts]


def divided(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Numbers of the queries to fit and to certify with, of ``count`` in all: half, at most 1,000, certifies.

    Raises:
        InputError: for fewer than 2.
    """
    if count < 2:
        raise InputError(f"queries: expected at least 2, some to fit to and some to certify with, got {count}")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    certified = min(CERTIFIED, count // 2)
    return order[certified:][:FITTED], order[:certified]


@torch.no_grad()
def fit_maps(snapshot: Snapshot, head: IEM, vectors: Tensor, task: int, rank: int, seed: int) -> Maps:
    """Fit maps to the scores of queries (Nq, D) with a sample of the passages."""
    live = snapshot.live
    draw = torch.Generator().manual_seed(seed)
    pool = live[torch.randperm(len(live), generator=draw)[:_POOL].sort().values]
    searching = Searching(snapshot, head, task, pool)
    a = searching.projected(vectors)
    return fit(a, snapshot.gather(pool), torch.from_numpy(searching.rough(a)), rank, seed)


def write_surrogate(
    root: Path,
    snapshot: Snapshot,
    head: IEM,
    vectors: Tensor,
    texts: Sequence[str] | None,
    *,
    task: int,
    rank: int,
    weight: float,
    seed: int,
    progress: bool,
) -> SurrogateRecord:
    """Fit a surrogate of every segment on some of the queries, certify it on the others, and write it.

    Args:
        vectors: the queries, (Nq, D).
        texts: the same as texts, for the hybrid search, or None.
        weight: what BM25 weighs there.

    Raises:
        InputError: for fewer than 2 queries.
        OSError: if the disk fills.
    """
    fitted, certified = divided(len(vectors), seed)
    maps = fit_maps(snapshot, head, vectors[fitted], task, rank, seed)
    words = [texts[row] for row in certified.tolist()] if texts and snapshot.has_terms else None
    segments = snapshot.manifest.segments
    digest = hashlib.sha256(save(vars(maps)))
    digest.update(repr((task, weight, [segment.name for segment in segments])).encode())
    folder = root / f"surrogate-{digest.hexdigest()[:16]}"
    with atomic_path(folder) as scratch:
        scratch.mkdir()
        write_maps(maps, scratch / MAPS)
        names = SurrogateRecord.names(segments)
        for segment, name in zip(snapshot.segments, names[2:], strict=True):
            write_rows(maps, segment.projected, scratch / name)
        rows = (read_tensors(scratch / name, {"rows": (None, None, torch.int8)})["rows"] for name in names[2:])
        searching = Searching(snapshot, head, task, snapshot.live)
        modes = _certify(Covering(maps, list(rows)), searching, vectors[certified], words, weight, progress)
        Certified(task, weight, modes).write(scratch / CERTIFICATE)
        record = SurrogateRecord(folder.name, tuple(FileRecord.of(scratch / name) for name in names))
    return record


@torch.inference_mode()
def _certify(
    covering: Covering,
    searching: Searching,
    vectors: Tensor,
    texts: Sequence[str] | None,
    weight: float,
    progress: bool,
) -> dict[str, Certificate]:
    """Search every query in full, and see how far down the channels its best passages lie."""
    found: dict[str, list[tuple[NDArray[np.int64], NDArray[np.int64]]]] = {mode: [] for mode in CERTIFIED_MODES}
    k = min(_KEPT, len(searching.places))
    for number in tqdm(range(len(vectors)), desc="certify", unit="query", disable=not progress):
        a = searching.projected(vectors[number : number + 1])
        rough = searching.rough(a)[0]
        surrogate = covering.scores(a)[0].numpy()[searching.places]
        best = searching.best(a[0], searching.rows, rough, k)[1]
        found["iem"].append((searching.places[best], _places(surrogate, best)))
        if texts is not None:
            matches, moments = searching.lexical(texts[number])
            among = searching.moments(a[0], rough), moments
            lexical = matches.of_all(len(searching.places))
            best = searching.best(a[0], searching.rows, rough, k, lexical, weight, among)[1]
            # What shares no term with the query is not chosen by BM25.
            by_words = np.where(lexical[best] > 0, _places(lexical, best), len(lexical))
            found["hybrid"].append((searching.places[best], np.minimum(_places(surrogate, best), by_words)))
    none = torch.zeros(0, k, dtype=torch.int64)
    return {
        mode: Certificate(*(torch.from_numpy(np.stack(part)) for part in zip(*each, strict=True)))
        if each
        else Certificate(none, none)
        for mode, each in found.items()
    }


def _places(scores: NDArray[np.float32 | np.int32], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many passages must be chosen by their scores for each row to be among them, however equals are ordered."""
    return len(scores) - np.searchsorted(np.sort(scores), scores[rows], side="left")
