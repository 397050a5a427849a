"""Evaluation of retrieval (IR), similarity (STS) and inference (NLI), and of systems side by side."""

from d2llm.evaluation.compare import Comparison, Row, compare
from d2llm.evaluation.pairs import nli_metrics, sts_metrics
from d2llm.evaluation.retrieval import ir_metrics, reranked_scores

__all__ = ["Comparison", "Row", "compare", "ir_metrics", "nli_metrics", "reranked_scores", "sts_metrics"]
