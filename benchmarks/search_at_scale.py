"""A certified search beside an exhaustive one in int8: python -m benchmarks.search_at_scale [--passages N].

Passages are the shipped student's vectors of the standard library, repeated with noise of half their deviation; queries
are docstrings. Those that are timed and judged were seen neither by the fit nor by the certificate. Nothing is
timed unless the certified search finds the share of the exact best ten that it promises.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from d2llm.data.docstrings import hold_out, standard_library_pairs
from d2llm.demo.library import library_vectors
from d2llm.index import Hit, Index
from d2llm.shipped import STUDENT
from d2llm.student import D2LLM

_K, _NOISE, _BLOCK = 10, 0.5, 1 << 14


def write_passages(vectors: np.ndarray, count: int, path: Path) -> np.ndarray:
    """The vectors (n, D) over and over, with noise but for the first time: (count, D) float32, in a file."""
    draw, deviation = np.random.default_rng(0), _NOISE * vectors.std(0)
    made = np.lib.format.open_memmap(path, "w+", np.float32, (count, vectors.shape[1]))
    for start in range(0, count, _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, count))
        noise = draw.standard_normal((len(rows), vectors.shape[1]), np.float32) * deviation
        made[rows] = vectors[rows % len(vectors)] + noise * (rows >= len(vectors))[:, None]
    return made


def found_share(exact: list[list[Hit]], found: list[list[Hit]]) -> float:
    """The mean share of the exact hits that were found."""
    pairs = zip(exact, found, strict=True)
    return statistics.mean(len({h.id for h in a} & {h.id for h in b}) / len(a) for a, b in pairs)


def milliseconds(run: Callable[[np.ndarray], object], queries: np.ndarray, batch: int) -> float:
    """The median time of a query."""
    run(queries[:batch])
    times = []
    for start in range(0, len(queries), batch):
        began = time.perf_counter()
        run(queries[start : start + batch])
        times.append((time.perf_counter() - began) / batch)
    return 1000 * statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=1_000_000)
    parser.add_argument("--fit", type=int, default=1000, help="queries to fit and certify with; a third certifies")
    parser.add_argument("--judged", type=int, default=96, help="unseen queries")
    parser.add_argument("--rank", type=int, default=128, help="bytes of a passage in the surrogate")
    parser.add_argument("--recall", type=float, default=0.99)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    student = D2LLM.from_pretrained(STUDENT)
    pairs = standard_library_pairs()
    train, held_out = hold_out(pairs)
    texts = [pair.query for pair in train[: arguments.fit] + held_out[: arguments.judged]]
    fitted, unseen = np.split(student.encode(texts, kind="query"), [arguments.fit])
    library = library_vectors(student, list(dict.fromkeys(pair.positive for pair in pairs)))
    with tempfile.TemporaryDirectory() as folder:
        vectors = write_passages(library, arguments.passages, Path(folder) / "vectors.npy")
        options = {"vectors": vectors, "dtype": "int8", "keep_vectors": False}
        index = Index.build(student.iem, None, Path(folder) / "index", **options)
        began = time.perf_counter()
        index.fit_surrogate(fitted, rank=arguments.rank)
        seconds = time.perf_counter() - began

        def certified(queries: np.ndarray) -> list[list[Hit]]:
            return index.search_vectors(queries, _K, recall=arguments.recall, explain=True)

        def exhaustive(queries: np.ndarray) -> list[list[Hit]]:
            return index.search_vectors(queries, _K, exact=True)

        hits = certified(unseen)
        share, promised = found_share(exhaustive(unseen), hits), hits[0][0].promised
        assert promised == arguments.recall, (
            f"{promised} was promised, not {arguments.recall}: give more queries to --fit"
        )
        assert share >= arguments.recall, f"{share} of the exact best {_K} were found where {promised} was promised"
        surrogate = index._snapshot.surrogate
        assert surrogate is not None
        candidates = surrogate[1].modes["iem"].candidates(_K, arguments.recall, index._snapshot.deleted)
        result = {**vars(arguments), "fit_seconds": seconds, "found": share, "candidates": candidates}
        for batch in (1, 16):
            few = unseen[: 16 * batch]
            slow, fast = milliseconds(exhaustive, few, batch), milliseconds(certified, few, batch)
            result[f"batch_{batch}"] = {"exhaustive_ms": slow, "certified_ms": fast, "ratio": slow / fast}
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
