"""A searchable corpus on disk: projected passages, exact and two-stage search."""

from d2llm.index.index import Hit, Index
from d2llm.index.model import Encoder

__all__ = ["Encoder", "Hit", "Index"]
