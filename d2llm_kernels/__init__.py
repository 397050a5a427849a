"""Kernels of D2LLM: pooling by attention and interaction scores, without the tensors that make them slow."""

from d2llm_kernels import functional, reference
from d2llm_kernels.errors import ArgumentError, BackendError, KernelError
from d2llm_kernels.modules.accelerate import accelerate
from d2llm_kernels.modules.iem import IEM
from d2llm_kernels.modules.pma import PMA
from d2llm_kernels.report import explain
from d2llm_kernels.rough import int8

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
