"""Evaluation of retrieval (IR), similarity (STS) and inference (NLI), and of systems side by side."""

from d2llm.evaluation.compare import Comparison, Contrast, Row, compare
from d2llm.evaluation.metrics import per_query
from d2llm.evaluation.pairs import Thresholds, fit_thresholds, nli_metrics, sts_metrics
from d2llm.evaluation.retrieval import ir_metrics, reranked_scores
from d2llm.evaluation.run import Run
from d2llm.evaluation.significance import Difference, Means, difference
from d2llm.evaluation.trec import read_qrels, read_run, write_qrels, write_run

__all__ = [
    "Comparison",
    "Contrast",
    "Difference",
    "Means",
    "Row",
    "Run",
    "Thresholds",
    "compare",
    "difference",
    "fit_thresholds",
    "ir_metrics",
    "nli_metrics",
    "per_query",
    "read_qrels",
    "read_run",
    "reranked_scores",
    "sts_metrics",
    "write_qrels",
    "write_run",
]
