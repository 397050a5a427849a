"""Ways to search an index, measured on a user's own queries: quality against milliseconds, and the one to take."""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from tqdm import tqdm

from d2llm.errors import InputError
from d2llm.evaluation.compare import Comparison, Row
from d2llm.evaluation.metrics import Qrels, judged_queries, per_query
from d2llm.evaluation.run import Run
from d2llm.index import Index

#: What BM25 may weigh, candidates that a channel may choose, and channels that may choose them together.
WEIGHTS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.8)
DEPTHS = (100, 1000)
CHANNELS = (("bm25",), ("cosine",), ("surrogate",), ("bm25", "cosine"), ("bm25", "surrogate"))


@dataclass(frozen=True)
class Way:
    """How to search: the mode, what BM25 weighs in "hybrid", and channels, none of which means every passage."""

    mode: str
    weight: float = 0
    channels: tuple[str, ...] = ()
    candidates: int = 0

    def __str__(self) -> str:
        mode = f"hybrid {self.weight:g}" if self.mode == "hybrid" else self.mode
        return f"{mode}, {self.candidates} by {' and '.join(self.channels)}" if self.channels else mode


@dataclass(frozen=True)
class Tuned:
    """What was measured of each way, and the way chosen."""

    measured: dict[Way, dict[str, float]]
    chosen: Way

    def table(self) -> Comparison:
        """A row a way."""
        return Comparison(tuple(Row(str(way), metrics) for way, metrics in self.measured.items()))


def tune_search(
    index: Index,
    queries: Mapping[str, str],
    qrels: Qrels,
    *,
    metric: str = "ndcg@10",
    within: float = 0.01,
    k: int = 100,
    task: str = "asym",
    progress: bool = True,
) -> Tuned:
    """Measure every mode over all passages, then channels and depths at the best weight, and choose.

    The fastest way is chosen whose quality is at most ``within`` below the best. As it is chosen on these queries,
    its quality is to be reported on others.

    Args:
        index: opened with the model that encodes queries.
        queries: texts by id; those without a relevant passage are left out.
        qrels: grades of passages, by id of the query and of the passage.
        metric: what chooses, of those of :func:`d2llm.evaluation.per_query`.
        within: how much of it speed may cost.
        k: hits of each search.
        task: the branch.
        progress: show a bar.

    Raises:
        InputError: for an unknown metric, or no query with a relevant passage.
    """
    judged = [name for name in judged_queries(qrels) if name in queries]
    if not judged:
        raise InputError("queries: expected one at least that has a relevant passage, got none")
    texts, held = [queries[name] for name in judged], {name: qrels[name] for name in judged}
    vectors = index.encode_queries(texts)
    measured: dict[Way, dict[str, float]] = {}

    def measure(ways: Sequence[Way]) -> None:
        for way in tqdm(ways, desc="tune", unit="way", disable=not progress):
            found, seconds = _searched(index, way, judged, texts, vectors, k, task)
            values = per_query(found, held, list(dict.fromkeys([metric, "mrr", "recall@100"])))
            measured[way] = {name: float(each.mean()) for name, each in values.items()}
            measured[way]["search_ms"] = 1000 * seconds

    measure([way for way in _whole() if _can(index, way)])
    hybrids = [way for way in measured if way.mode == "hybrid"] or [Way("iem")]
    best = max(hybrids, key=lambda way: measured[way][metric])
    depths = [depth for depth in DEPTHS if k <= depth < len(index)]
    staged = [replace(best, channels=channels, candidates=depth) for channels in CHANNELS for depth in depths]
    measure([way for way in staged if _can(index, way)])
    least = max(values[metric] for values in measured.values()) - within
    good = [way for way, values in measured.items() if values[metric] >= least]
    return Tuned(measured, min(good, key=lambda way: measured[way]["search_ms"]))


def _whole() -> list[Way]:
    return [Way("bm25"), Way("cosine"), Way("iem"), *(Way("hybrid", weight) for weight in WEIGHTS)]


def _can(index: Index, way: Way) -> bool:
    """Whether the index holds what a way needs."""
    return {way.mode, *way.channels} <= index.measures


def _searched(
    index: Index, way: Way, names: Sequence[str], texts: Sequence[str], vectors: np.ndarray, k: int, task: str
) -> tuple[Run, float]:
    """What each query finds, and the median of the seconds that it takes."""
    found, seconds = {}, []
    for row, (name, text) in enumerate(zip(names, texts, strict=True)):
        start = time.perf_counter()
        hits = index.search(
            text,
            k,
            task=task,
            mode=way.mode,
            channels=way.channels,
            candidates=way.candidates,
            exact=not way.channels,
            vectors=vectors[row : row + 1],
            bm25_weight=way.weight,
        )[0]
        seconds.append(time.perf_counter() - start)
        found[name] = {hit.id: hit.score for hit in hits}
    return Run.of_mapping(found), statistics.median(seconds)
