"""Tasks of MTEB's own classes from data at hand: its metrics, without its data sets."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset
from mteb.abstasks import AbsTask
from mteb.abstasks.pair_classification import AbsTaskPairClassification
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.sts import AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata

from d2llm.data.beir import Collection
from d2llm.data.pairs import LabelledPairs
from d2llm.errors import InputError

_SPLIT = "test"
#: Of pairs: MTEB's class, its kind of task, the score that stands for it, the column of labels.
_PAIRS = {
    "sts": (AbsTaskSTS, "STS", "spearman", "score"),
    "nli": (AbsTaskPairClassification, "PairClassification", "similarity_ap", "labels"),
}


def retrieval_task(
    collection: Collection,
    name: str,
    candidates: Mapping[str, Sequence[str]] | None = None,
    languages: Sequence[str] = ("eng-Latn",),
) -> AbsTask:
    """Retrieval over a collection or, where each query has its candidates, re-ranking of those.

    Args:
        collection: corpus, queries and judgements.
        name: of the task.
        candidates: ids of passages by id of a query.
        languages: as MTEB writes them.
    """
    kind, main = ("Retrieval", "ndcg_at_10") if candidates is None else ("Reranking", "map_at_1000")
    given = {"corpus": collection.corpus, "queries": collection.queries, "qrels": collection.qrels, "top": candidates}
    task = type(name, (AbsTaskRetrieval,), {"metadata": _metadata(name, kind, main, given, languages)})()
    task.dataset = {
        "default": {
            _SPLIT: {
                "corpus": _rows(collection.corpus),
                "queries": _rows(collection.queries),
                "relevant_docs": {query: dict(row) for query, row in collection.qrels.items()},
                "top_ranked": None if candidates is None else {query: list(ids) for query, ids in candidates.items()},
            }
        }
    }
    task.data_loaded = True
    return task


def pair_task(pairs: LabelledPairs, name: str, kind: str, languages: Sequence[str] = ("eng-Latn",)) -> AbsTask:
    """Labelled pairs of texts as a task.

    Args:
        pairs: with grades for ``sts``, with 1 and 0 for ``nli``.
        name: of the task.
        kind: ``sts`` or ``nli``.
        languages: as MTEB writes them.

    Raises:
        InputError: for another kind.
    """
    if kind not in _PAIRS:
        raise InputError(f"kind: expected one of {tuple(_PAIRS)}, got {kind!r}")
    base, of_mteb, main, column = _PAIRS[kind]
    task = type(name, (base,), {"metadata": _metadata(name, of_mteb, main, pairs, languages)})()
    labels = pairs.labels if kind == "sts" else [int(label) for label in pairs.labels]
    first, second = [pair[0] for pair in pairs.pairs], [pair[1] for pair in pairs.pairs]
    task.dataset = {_SPLIT: Dataset.from_dict({"sentence1": first, "sentence2": second, column: labels})}
    task.data_loaded = True
    return task


def _metadata(name: str, kind: str, main: str, data: Any, languages: Sequence[str]) -> TaskMetadata:
    """Metadata whose revision is a digest of the data, so that results of other data are not taken for these."""
    revision = hashlib.sha256(json.dumps(data).encode()).hexdigest()[:16]
    return TaskMetadata(
        name=name,
        description="Local data.",
        type=kind,
        category="t2t",
        dataset={"path": "local", "revision": revision},
        eval_splits=[_SPLIT],
        eval_langs=list(languages),
        main_score=main,
    )


def _rows(texts: Mapping[str, str]) -> Dataset:
    return Dataset.from_dict({"id": list(texts), "text": list(texts.values())})
