"""From what systems found to a table: means, spreads over seeds, differences, and what is worth knowing of the data."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from d2llm.errors import InputError
from d2llm.evaluation.compare import Comparison, Contrast, Row
from d2llm.evaluation.metrics import METRICS, Qrels, check_metrics, judged_queries, per_query
from d2llm.evaluation.run import DEPTH, Run
from d2llm.evaluation.scorers import Found
from d2llm.evaluation.significance import SAMPLES, Means, difference

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """A table and what it was made of."""

    table: Comparison
    #: The queries that were measured.
    queries: list[str]
    #: {system: {metric: (Nq,)}}, the mean over seeds where there are several.
    per_query: dict[str, dict[str, Values]]


def measure(
    found: Mapping[str, Found],
    qrels: Qrels,
    passages: Sequence[str],
    metrics: Sequence[str] = METRICS,
    *,
    contrast: str | None = None,
    baselines: Sequence[str] = (),
    depth: int = DEPTH,
    samples: int = SAMPLES,
    seed: int = 0,
) -> Measured:
    """Measure what systems found.

    Args:
        found: {name of a system: its runs}.
        qrels: judgements; queries without a relevant passage are left out, and counted in a note.
        passages: ids of the collection.
        metrics: see :func:`d2llm.evaluation.metrics.per_query`.
        contrast: metric in which every system is compared with the baselines; by default the first one.
        baselines: some systems; by default the first one.
        depth: passages that a run was to have, for the note on those that have fewer.
        samples, seed: of the intervals and tests (:func:`d2llm.evaluation.significance.difference`).

    Raises:
        InputError: for an unknown metric or baseline, no system, or no query with a relevant passage.
    """
    names, queries = check_metrics(metrics), judged_queries(qrels)
    contrast = names[0] if contrast is None else contrast
    if contrast not in names:
        raise InputError(f"--contrast: expected one of {', '.join(names)}, got {contrast!r}")
    pairs = against(found, baselines)
    rows, values = [], {}
    for name, each in found.items():
        seeds = [per_query(run, qrels, names) for run in each.runs]
        values[name] = {metric: np.mean([one[metric] for one in seeds], axis=0) for metric in names}
        means = [{metric: float(one[metric].mean()) for metric in names} for one in seeds]
        mean = {metric: float(values[name][metric].mean()) for metric in names}
        rows.append(Row(name, {**mean, "queries": float(len(queries)), **each.cost}, spread(means)))
    contrasts = [
        Contrast(
            name,
            baseline,
            contrast,
            difference(Means(values[name][contrast], values[baseline][contrast]), samples, seed),
        )
        for name, baseline in pairs
    ]
    notes = [*_notes_on_qrels(qrels, queries, passages)]
    for name, each in found.items():
        notes += _notes_on_run(name, each.runs[0], qrels, queries, passages, depth)
    return Measured(Comparison(tuple(rows), tuple(contrasts), tuple(notes)), queries, values)


def against(systems: Iterable[str], baselines: Sequence[str]) -> list[tuple[str, str]]:
    """(system, baseline) for every system but the baseline, no two of them twice; by default the first is the baseline.

    Raises:
        InputError: for an unknown baseline, or no system.
    """
    names = list(systems)
    if not names:
        raise InputError("systems: expected at least one, got none")
    if unknown := [baseline for baseline in baselines if baseline not in names]:
        raise InputError(f"--baseline: expected one of {', '.join(names)}, got {unknown[0]!r}")
    chosen = list(dict.fromkeys(baselines or names[:1]))
    return [
        (name, baseline)
        for number, baseline in enumerate(chosen)
        for name in names
        if name != baseline and name not in chosen[:number]
    ]


def spread(seeds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Standard deviation (n - 1) of the metrics of several seeds; nothing for a single one."""
    if len(seeds) < 2:
        return {}
    return {metric: float(np.std([one[metric] for one in seeds], ddof=1)) for metric in seeds[0]}


def _notes_on_qrels(qrels: Qrels, queries: Sequence[str], passages: Sequence[str]) -> list[str]:
    notes, corpus = [], set(passages)
    if left_out := len(qrels) - len(queries):
        notes.append(f"qrels: {left_out} of {len(qrels)} queries have no relevant passage and are left out")
    if absent := {passage for query in queries for passage in qrels[query]} - corpus:
        notes.append(
            f"qrels: {len(absent)} judged passages are not in the corpus, such as {min(absent)!r}; relevant ones count "
            "as not found"
        )
    return notes


def _notes_on_run(
    name: str, run: Run, qrels: Qrels, queries: Sequence[str], passages: Sequence[str], depth: int
) -> list[str]:
    notes, there = [], set(run.queries)
    if unjudged := [query for query in run.queries if query not in qrels]:
        notes.append(f"{name}: {len(unjudged)} queries of its run are not judged and left out, such as {unjudged[0]!r}")
    if absent := [query for query in queries if query not in there]:
        notes.append(f"{name}: {len(absent)} judged queries are not in its run and count 0, such as {absent[0]!r}")
    expected, found = min(depth, len(passages)), dict(zip(run.queries, run.found().tolist(), strict=True))
    if few := [found[query] for query in queries if found.get(query, expected) < expected]:
        notes.append(
            f"{name}: fewer than {expected} passages for {len(few)} of {len(queries)} queries, {min(few)} at the least"
        )
    if run.passages is not passages and (unknown := set(run.passages) - set(passages)):
        notes.append(
            f"{name}: {len(unknown)} passages of its run are not in the corpus, such as {min(unknown)!r}; they count "
            "as not relevant"
        )
    return notes
