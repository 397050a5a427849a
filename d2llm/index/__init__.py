"""A searchable corpus on disk: projected passages, BM25, searches in full or in two certified stages."""

from d2llm.index.hits import Hit
from d2llm.index.index import Index
from d2llm.index.model import Encoder
from d2llm.index.sharing import build_share

__all__ = ["Encoder", "Hit", "Index", "build_share"]
