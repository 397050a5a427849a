"""Fitting a surrogate to an index, and certifying it on queries that the fit has not seen."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from d2llm.data.docstrings import first_sentence
from d2llm.errors import InputError
from d2llm.files import atomic_path
from d2llm.index.certificate import Certificate
from d2llm.index.covering import CERTIFIED_MODES, Certified, Covering, write_maps, write_rows
from d2llm.index.engines import write_engine
from d2llm.index.exact_best import exact_best
from d2llm.index.records import CERTIFICATE, MAPS, FileRecord, SurrogateRecord
from d2llm.index.searching import Searching
from d2llm.index.snapshot import Snapshot
from d2llm.index.surrogate import Maps, Near, fit
from d2llm.tensor_files import read_tensors
from d2llm_kernels import IEM
from d2llm_kernels.rough import inner

#: Queries that a fit uses at most, and those that it is certified on: the rest, at most so many.
FITTED, CERTIFIED = 4000, 1000
#: Passages of each certified query that are kept: promises are for so many hits at most.
_KEPT = 100
# An engine is asked for so many of a corpus, and no fewer than this: with more, every passage is scored.
_PART, _LEAST = 8, 10_000
# Passages that a fit sees first; those among which it then looks for what is near the top, and takes so many.
_POOL, _SEARCHED, _NEAR = 4096, 1 << 18, 512
# How many times as many steps a fit to more passages than those takes. Among a million, three times as many left 14,574
# of 47,809 candidates for a recall of 0.99, and eight times as many 6,474.
_LONGER = 8
# Passages mapped at a time: 64 MB.
_BLOCK = 1 << 15
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


def divided(count: int, certify: int, seed: int) -> tuple[Tensor, Tensor]:
    """Numbers of the queries to fit and to certify with, of ``count`` in all: half, at most ``certify``, certifies.

    Raises:
        InputError: for fewer than 2.
    """
    if count < 2:
        raise InputError(f"queries: expected at least 2, some to fit to and some to certify with, got {count}")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    certified = min(certify, count // 2)
    return order[certified:][:FITTED], order[:certified]


@torch.no_grad()
def fit_maps(snapshot: Snapshot, head: IEM, vectors: Tensor, task: int, rank: int, seed: int) -> Maps:
    """Fit maps to the scores of queries (Nq, D) with a sample of the passages, then with what those put first."""
    live = snapshot.live
    drawn = live[torch.randperm(len(live), generator=torch.Generator().manual_seed(seed))]
    pool, searched = (drawn[:count].sort().values for count in (_POOL, _SEARCHED))
    searching = Searching(snapshot, head, task, pool)
    a = searching.projected(vectors)

    def near(maps: Maps) -> Near:
        rows = [maps.passages(snapshot.gather(some)) for some in searched.split(_BLOCK)]
        found = inner.topk(maps.queries(a), rows, min(_NEAR, len(searched)))[1]
        among = Searching(snapshot, head, task, searched)
        scores = [torch.from_numpy(among.rough_at(*each)) for each in zip(a, found.numpy(), strict=True)]
        return Near(searched[found], torch.stack(scores), snapshot.gather)

    longer = _LONGER if len(live) > _SEARCHED else 1
    return fit(a, snapshot.gather(pool), torch.from_numpy(searching.rough(a)), rank, seed, near, longer)


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
    engine: str,
    certify: int,
    seed: int,
    progress: bool,
) -> SurrogateRecord:
    """Fit a surrogate of every segment on some of the queries, certify it on the others, and write it.

    Args:
        vectors: the queries, (Nq, D).
        texts: the same as texts, for the hybrid search, or None.
        weight: what BM25 weighs there.
        engine: what finds candidates, one of ``ENGINES``.
        certify: how many queries certify at most.

    Raises:
        InputError: for fewer than 2 queries.
        OSError: if the disk fills.
    """
    fitted, certified = divided(len(vectors), certify, seed)
    words = [texts[row] for row in certified.tolist()] if texts and snapshot.has_terms else None
    searching = Searching(snapshot, head, task, snapshot.live)
    # First, as it takes longest and is not lost.
    best = _exact(root, snapshot, searching, vectors[certified], words, task, weight, progress)
    maps = fit_maps(snapshot, head, vectors[fitted], task, rank, seed)
    segments = snapshot.manifest.segments
    digest = hashlib.sha256(save(vars(maps)))
    # With the generation, so that nothing is put in the place of what the present state names.
    generation, names = snapshot.manifest.generation, [segment.name for segment in segments]
    digest.update(repr((generation, task, weight, engine, names)).encode())
    folder = root / f"surrogate-{digest.hexdigest()[:16]}"
    with atomic_path(folder) as scratch:
        scratch.mkdir()
        write_maps(maps, scratch / MAPS)
        names = SurrogateRecord.names(segments)
        for segment, name in zip(snapshot.segments, names[2:], strict=True):
            write_rows(maps, segment.projected, scratch / name)
        rows = [read_tensors(scratch / name, {"rows": (None, None, torch.int8)})["rows"] for name in names[2:]]
        found_by = None
        if engine != "scan":
            write_engine(engine, rows, scratch / f"{engine}.faiss")
            found_by = FileRecord.of(scratch / f"{engine}.faiss")
        covering = Covering(maps, rows, None if found_by is None else (scratch, found_by))
        modes = _certify(covering, searching, vectors[certified], words, best)
        Certified(task, weight, modes).write(scratch / CERTIFICATE)
        record = SurrogateRecord(folder.name, tuple(FileRecord.of(scratch / name) for name in names), found_by)
    return record


@torch.inference_mode()
def _exact(
    root: Path,
    snapshot: Snapshot,
    searching: Searching,
    vectors: Tensor,
    texts: Sequence[str] | None,
    task: int,
    weight: float,
    progress: bool,
) -> Tensor:
    """Positions of each query's exact best K by "iem", and where there are texts by "hybrid": (Q, 1 or 2, K)."""
    manifest, k = snapshot.manifest, min(_KEPT, len(searching.places))
    state = [manifest.head.sha256, [segment.name for segment in manifest.segments], manifest.deleted, task]
    digest = hashlib.sha256(repr([*state, texts, weight if texts else None]).encode())
    digest.update(vectors.numpy().tobytes())

    def find(number: int) -> Tensor:
        a = searching.projected(vectors[number : number + 1])
        rough = searching.rough(a)[0]
        found = [searching.best(a[0], searching.rows, rough, k)[1]]
        if texts is not None:
            matches, moments = searching.lexical(texts[number])
            lexical, among = matches.of_all(len(searching.places)), (searching.moments(a[0], rough), moments)
            found.append(searching.best(a[0], searching.rows, rough, k, lexical, weight, among)[1])
        return torch.from_numpy(searching.places[np.stack(found)])

    return exact_best(root / f"exact-{digest.hexdigest()[:16]}.safetensors", len(vectors), find, progress)


@torch.inference_mode()
def _certify(
    covering: Covering, searching: Searching, vectors: Tensor, texts: Sequence[str] | None, best: Tensor
) -> dict[str, Certificate]:
    """See how far down the channels the exact best passages of each query, (Q, 1 or 2, K), lie."""
    needed: dict[str, list[NDArray[np.int64]]] = {mode: [] for mode in CERTIFIED_MODES}
    for number, places in enumerate(best.numpy()):
        a = searching.projected(vectors[number : number + 1])
        needed["iem"].append(_chosen(covering, searching, a, searching.rows_at(places[0])))
        if texts is not None:
            rows = searching.rows_at(places[1])
            lexical = searching.lexical(texts[number])[0].of_all(len(searching.places))
            # What shares no term with the query is not chosen by BM25.
            by_words = np.where(lexical[rows] > 0, _places(lexical, rows), len(lexical))
            needed["hybrid"].append(np.minimum(_chosen(covering, searching, a, rows), by_words))
    none = torch.zeros(0, best.shape[2], dtype=torch.int64)
    return {
        mode: Certificate(best[:, column].contiguous(), torch.from_numpy(np.stack(each)))
        if each
        else Certificate(none, none)
        for column, (mode, each) in enumerate(needed.items())
    }


def _chosen(covering: Covering, searching: Searching, a: Tensor, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many passages must be chosen for one projected query (1, F) so that each row is among them.

    What an engine misses takes more than there are.
    """
    if covering.engine is None:
        return _places(covering.scores(a)[0].numpy()[searching.places], rows)
    count = min(covering.end, max(_LEAST, covering.end // _PART))
    values, numbers = (each[0] for each in covering.engine.search(covering.maps.queries(a), count))
    place = np.full(covering.end, covering.end + 1)
    found = numbers >= 0
    # However equals are ordered.
    place[numbers[found]] = np.searchsorted(-values[found], -values[found], side="right")
    return place[searching.places[rows]]


def _places(scores: NDArray[np.float32 | np.int32], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many passages must be chosen by their scores for each row to be among them, however equals are ordered."""
    return len(scores) - np.searchsorted(np.sort(scores), scores[rows], side="left")
