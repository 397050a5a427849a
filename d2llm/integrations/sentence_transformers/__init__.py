"""A student as a model of sentence-transformers (extra ``st``), and the losses that distil into one."""

from d2llm.requirements import require

require("sentence_transformers", "st")

from d2llm.integrations.sentence_transformers.cross_encoder import cross_encoder  # noqa: E402
from d2llm.integrations.sentence_transformers.losses import D2LLMLoss  # noqa: E402
from d2llm.integrations.sentence_transformers.model import D2LLMSentenceTransformer  # noqa: E402
from d2llm.integrations.sentence_transformers.modules import IEM, PMAPooling  # noqa: E402

__all__ = ["IEM", "D2LLMLoss", "D2LLMSentenceTransformer", "PMAPooling", "cross_encoder"]
