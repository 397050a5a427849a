"""A certified search beside exhaustive ones and other scorers: python -m benchmarks.search_at_scale --data FOLDER.

Passages are the shipped student's vectors of the standard library, repeated with noise of half their deviation; queries
are docstrings. Those that are timed and judged were seen neither by the fit nor by the certificate. Nothing is
timed unless the certified search finds the share of the exact best ten that it promises.

The corpus, its surrogate and the exact results of the judged queries are made in FOLDER once, which takes half an hour
on two cores for a million passages where the CPU has VNNI and hours where it has not, and is gone on with after a stop;
``--build`` does no more. What is measured comes after it, in minutes, and ``--document`` writes it into
docs/benchmarks.md.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.document import write_table
from benchmarks.scale_peers import Peer, peers
from d2llm.data.docstrings import hold_out, standard_library_pairs
from d2llm.demo.library import library_vectors
from d2llm.files import atomic_path, write_json
from d2llm.index import Hit, Index
from d2llm.index.exact_best import exact_best
from d2llm.shipped import STUDENT
from d2llm.student import D2LLM
from d2llm_kernels.measure import writing
from d2llm_kernels.measure.machine import facts

_K, _NOISE, _BLOCK = 10, 0.5, 1 << 14
# Queries that an exhaustive search is timed on.
_SLOW = 12


class Corpus(NamedTuple):
    """What is searched.

    ``vectors`` (N, D) float32 and ``queries`` (Nq, D) float32, unseen; ``exact`` (Nq, 10) int64, numbers of each one's
    exact best.
    """

    index: Index
    vectors: np.ndarray
    queries: np.ndarray
    exact: np.ndarray


def write_passages(vectors: np.ndarray, count: int, path: Path) -> None:
    """Write the vectors (n, D) over and over, with noise but for the first time: (count, D) float32."""
    draw, deviation = np.random.default_rng(0), _NOISE * vectors.std(0)
    with atomic_path(path) as scratch:
        made = np.lib.format.open_memmap(scratch, "w+", np.float32, (count, vectors.shape[1]))
        for start in range(0, count, _BLOCK):
            rows = np.arange(start, min(start + _BLOCK, count))
            noise = draw.standard_normal((len(rows), vectors.shape[1]), np.float32) * deviation
            made[rows] = vectors[rows % len(vectors)] + noise * (rows >= len(vectors))[:, None]
        made.flush()


def prepare(folder: Path, passages: int, fit: int, certify: int, judged: int, rank: int) -> Corpus:
    """The corpus in a folder, made as far as it is not there."""
    student = D2LLM.from_pretrained(STUDENT)
    # What another student made says nothing of this one.
    folder = folder / f"{student.fingerprint()[:12]}-{passages}"
    folder.mkdir(parents=True, exist_ok=True)
    pairs = standard_library_pairs()
    train, held_out = hold_out(pairs)

    def stored(name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        path = folder / name
        if not path.exists():
            with atomic_path(path) as scratch, scratch.open("wb") as handle:
                np.save(handle, make())
        return np.load(path)

    texts = [pair.query for pair in train[:fit] + held_out[:judged]]
    queries = stored(f"queries-{fit}-{judged}.npy", lambda: np.asarray(student.encode(texts, kind="query")))
    path = folder / "vectors.npy"
    if not path.exists():
        library = library_vectors(student, list(dict.fromkeys(pair.positive for pair in pairs)))
        write_passages(library, passages, path)
    # Copied on write: what reads it would warn of a mapping that cannot be written.
    vectors = np.load(path, mmap_mode="c")
    if not (folder / "index" / "manifest.json").exists():
        Index.build(student.iem, None, folder / "index", vectors=vectors, dtype="int8", keep_vectors=False)
    index = Index.open(folder / "index")
    surrogate = index._snapshot.surrogate
    if surrogate is None or len(surrogate[0].maps.query) != rank:
        index.fit_surrogate(queries[:fit], rank=rank, certify=certify)
    unseen = queries[fit:]

    def searched(number: int) -> Tensor:
        return torch.from_numpy(numbers_of(index.search_vectors(unseen[number : number + 1], _K, exact=True)))

    exact = exact_best(folder / f"exact-{judged}", judged, searched, progress=True)
    return Corpus(index, vectors, unseen, exact[:, 0].numpy())


def numbers_of(hits: list[list[Hit]]) -> np.ndarray:
    """The passages that were found, (Nq, k) int64."""
    return np.array([[int(hit.id) for hit in row] for row in hits])


def found_share(exact: np.ndarray, found: np.ndarray) -> float:
    """The mean share of the exact best (Nq, k) that are among what was found (Nq, n)."""
    return float((exact[:, :, None] == found[:, None]).any(2).mean())


def timed(run: Callable[[np.ndarray], object], queries: np.ndarray) -> dict[str, float]:
    """Median milliseconds of a query asked alone, and those of all processors."""
    run(queries[:1])
    wall, spent = [], []
    for row in range(len(queries)):
        began, used = time.perf_counter(), time.process_time()
        run(queries[row : row + 1])
        wall.append(time.perf_counter() - began)
        spent.append(time.process_time() - used)
    return {"ms": 1000 * statistics.median(wall), "cpu_ms": 1000 * statistics.median(spent)}


def measure(corpus: Corpus, recall: float, others: list[Peer]) -> list[dict[str, Any]]:
    """A row for each way to search; the certified one is checked before anything is timed."""
    index, passages = corpus.index, len(corpus.vectors)

    def certified(queries: np.ndarray, explain: bool = False) -> list[list[Hit]]:
        # Explained, a search ranks every passage by every channel.
        return index.search_vectors(queries, _K, recall=recall, explain=explain)

    hits = certified(corpus.queries)
    promised = certified(corpus.queries[:1], explain=True)[0][0].promised
    assert promised == recall, f"{promised} was promised, not {recall}: the certificate has too few queries"
    share = found_share(corpus.exact, numbers_of(hits))
    assert share >= recall, f"{share} of the exact best {_K} were found where {promised} was promised"
    hidden, count = index._snapshot.manifest.hidden, index._snapshot.candidates("iem", _K, recall)
    rank = len(index._snapshot.surrogate[0].maps.query) if index._snapshot.surrogate else 0
    slow = timed(lambda queries: index.search_vectors(queries, _K, exact=True), corpus.queries[:_SLOW])
    fast = timed(certified, corpus.queries)
    rows = [
        {"system": f"IEM, exhaustive, int8, F={hidden}", "bytes": hidden + 4, "found": 1.0, **slow},
        {
            "system": f"IEM, {recall} promised: surrogate of {rank}, {count} candidates",
            "bytes": hidden + 4 + rank,
            "found": share,
            **fast,
        },
    ]
    for peer in others:
        search = peer.open(corpus.vectors)
        found = None if peer.scale > 1 else found_share(corpus.exact, search(corpus.queries))
        times = timed(search, corpus.queries[: _SLOW if peer.slow else None])
        row = {name: value * peer.scale for name, value in times.items()}
        rows.append({"system": peer.name, "bytes": peer.bytes, "found": found, "scaled": peer.scale, **row})
        del search
    return [{**row, "passages": passages, "ratio": rows[0]["ms"] / row["ms"]} for row in rows]


def table(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Head and lines, one a system."""
    lines = [["system", "bytes a passage", "a query", "exhaustive IEM takes", "share of IEM's exact best 10"]]
    for row in rows:
        mark = "~" if row.get("scaled", 1) > 1 else ""
        found = "-" if row["found"] is None else f"{row['found']:.4f}"
        time_of = mark + writing.duration(row["ms"] / 1000)
        lines.append([row["system"], f"{row['bytes']:,}", time_of, f"{row['ratio']:.3g} times as long", found])
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that the corpus is made in, once")
    parser.add_argument("--passages", type=int, default=1_000_000)
    parser.add_argument("--fit", type=int, default=4900, help="queries to fit and certify with")
    parser.add_argument("--certify", type=int, default=400, help="how many of them certify")
    parser.add_argument("--judged", type=int, default=200, help="unseen queries")
    parser.add_argument("--rank", type=int, default=128, help="bytes of a passage in the surrogate")
    parser.add_argument("--recall", type=float, default=0.99)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--build", action="store_true", help="make the corpus and measure nothing")
    parser.add_argument("--only-iem", action="store_true", help="without the other scorers")
    parser.add_argument("--document", action="store_true", help="write the table into docs/benchmarks.md")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    corpus = prepare(
        arguments.data, arguments.passages, arguments.fit, arguments.certify, arguments.judged, arguments.rank
    )
    if arguments.build:
        return
    others = [] if arguments.only_iem else peers(corpus.vectors.shape[1], arguments.threads, arguments.passages)
    rows = measure(corpus, arguments.recall, others)
    cells = table(rows)
    write_json(arguments.data / "report.json", {"machine": facts(torch.device("cpu")), "rows": rows})
    print(json.dumps(rows, indent=2), *writing.markdown(cells), sep="\n")
    if arguments.document:
        write_table("scale", cells)


if __name__ == "__main__":
    main()
