"""The CUDA backend: kernels of ``csrc/cuda``, and the functions that launch them. Design: docs/kernels.md."""

from d2llm_kernels.cuda.interaction import iem_pairs, iem_pairs_backward, iem_scores, iem_scores_backward, iem_topk
from d2llm_kernels.cuda.pooling import attn_pool, attn_pool_backward

__all__ = [
    "attn_pool",
    "attn_pool_backward",
    "iem_pairs",
    "iem_pairs_backward",
    "iem_scores",
    "iem_scores_backward",
    "iem_topk",
]
