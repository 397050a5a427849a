"""The student: a decoder LLM with LoRA, its tokens pooled by attention (PMA), its embeddings compared by the IEM."""

from transformers import AutoConfig, AutoModel

from d2llm.student.configuration import D2LLMConfig
from d2llm.student.modeling import D2LLM, StudentOutput

__all__ = ["D2LLM", "D2LLMConfig", "StudentOutput"]

# What loads a model by what its config.json says of it finds a student so, once this package is imported.
AutoConfig.register(D2LLMConfig.model_type, D2LLMConfig)
AutoModel.register(D2LLMConfig, D2LLM)
