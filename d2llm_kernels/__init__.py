"""Kernels of D2LLM: pooling by attention and interaction scores, without the tensors that make them slow."""

from d2llm_kernels import functional, int8, reference
from d2llm_kernels.accelerate import accelerate
from d2llm_kernels.errors import ArgumentError, BackendError, KernelError
from d2llm_kernels.iem import IEM
from d2llm_kernels.pma import PMA
from d2llm_kernels.report import explain

__all__ = [
    "IEM",
    "PMA",
    "ArgumentError",
    "BackendError",
    "KernelError",
    "accelerate",
    "explain",
    "functional",
    "int8",
    "reference",
]
