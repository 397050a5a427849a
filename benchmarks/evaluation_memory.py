"""Memory of an evaluation at the size of FiQA: ``python -m benchmarks.evaluation_memory``.

Texts and vectors are random: only the student's language model is left out. Prints what the process held at most beside
what it held before the data came, and what a query takes.
"""

import argparse
import json
import resource

import numpy as np
import torch

from d2llm.evaluation.measure import measure
from d2llm.evaluation.scorers import Vectors, bm25_scorer, cosine_scorer, hybrid_scorer, iem_scorer, search
from d2llm_kernels import IEM

#: Words of a passage and of a query, as in FiQA, and of the language.
PASSAGE_WORDS, QUERY_WORDS, VOCABULARY = 132, 11, 50_000


def peak() -> int:
    """Bytes that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def texts(draw: np.random.Generator, count: int, words: int) -> list[str]:
    """Texts of random words, common and rare ones as in a language."""
    numbers = np.minimum(draw.zipf(1.2, size=(count, words)), VOCABULARY)
    return [" ".join(f"w{number}" for number in row) for row in numbers.tolist()]


def main() -> None:
    """Run BM25, cosine, IEM and hybrid, and measure them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passages", type=int, default=57_638)
    parser.add_argument("--queries", type=int, default=648)
    parser.add_argument("--dim", type=int, default=576)
    parser.add_argument("--hidden", type=int, default=512)
    arguments = parser.parse_args()
    head, draw = IEM(arguments.dim, hidden=arguments.hidden), np.random.default_rng(0)
    before = peak()
    queries, passages = (
        texts(draw, count, words)
        for count, words in ((arguments.queries, QUERY_WORDS), (arguments.passages, PASSAGE_WORDS))
    )
    vectors = Vectors(*(torch.randn(len(side), arguments.dim) for side in (queries, passages)))
    query_ids, ids = (
        [f"{kind}{number}" for number in range(len(side))] for kind, side in (("q", queries), ("p", passages))
    )
    data = peak() - before
    lexical, semantic = bm25_scorer("BM25", queries, passages), iem_scorer("IEM", head, vectors)
    built = peak() - before
    scorers = [lexical, cosine_scorer("cosine", vectors), semantic, hybrid_scorer("hybrid", semantic, lexical)]
    found = search(scorers, query_ids, ids)
    qrels = {query: {ids[number]: 1 for number in draw.choice(len(ids), 3)} for query in query_ids}
    measured = measure(found, qrels, ids, samples=1000)
    runs = sum(run.indices.nbytes + run.scores.nbytes for each in found.values() for run in each.runs)
    print(measured.table.to_text())
    print(
        json.dumps(
            {
                **vars(arguments),
                "systems": len(found),
                "data_bytes": data,
                "data_and_bm25_index_peak_bytes": built,
                "peak_bytes_beside_the_model": peak() - before,
                "run_bytes_a_query_and_system": runs / len(found) / len(queries),
            }
        )
    )


if __name__ == "__main__":
    main()
