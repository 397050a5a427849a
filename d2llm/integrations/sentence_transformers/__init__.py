"""A student as a model of sentence-transformers (extra ``st``), and the losses that distil into one."""

from d2llm.integrations.sentence_transformers.losses import D2LLMLoss
from d2llm.integrations.sentence_transformers.model import D2LLMSentenceTransformer
from d2llm.integrations.sentence_transformers.modules import IEM, PMAPooling

__all__ = ["IEM", "D2LLMLoss", "D2LLMSentenceTransformer", "PMAPooling"]
