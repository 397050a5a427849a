"""The operations as functions."""

from d2llm_kernels.operators.in_batch import in_batch_terms
from d2llm_kernels.operators.interaction import iem_pairs, iem_scores, iem_topk
from d2llm_kernels.operators.linear import linear
from d2llm_kernels.operators.lora import lora_linear
from d2llm_kernels.operators.pooling import attn_pool

__all__ = ["attn_pool", "iem_pairs", "iem_scores", "iem_topk", "in_batch_terms", "linear", "lora_linear"]
