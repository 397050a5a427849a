"""The Triton backend: kernels, tables of tiles, and the functions that launch them. Design: docs/kernels.md."""

from d2llm_kernels.triton.in_batch import in_batch_terms, in_batch_terms_backward
from d2llm_kernels.triton.interaction_backward import iem_pairs_backward, iem_scores_backward
from d2llm_kernels.triton.interaction_forward import iem_pairs, iem_scores, iem_topk
from d2llm_kernels.triton.pool_backward import attn_pool_backward
from d2llm_kernels.triton.pool_forward import attn_pool

__all__ = [
    "attn_pool",
    "attn_pool_backward",
    "iem_pairs",
    "iem_pairs_backward",
    "iem_scores",
    "iem_scores_backward",
    "iem_topk",
    "in_batch_terms",
    "in_batch_terms_backward",
]
