"""The student: a decoder LLM with LoRA, its tokens pooled by attention (PMA), its embeddings compared by the IEM."""

from d2llm.student.configuration import D2LLMConfig
from d2llm.student.modeling import D2LLM, StudentOutput

__all__ = ["D2LLM", "D2LLMConfig", "StudentOutput"]
