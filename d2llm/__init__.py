"""D2LLM: semantic search with the judgement of an LLM at the cost of a bi-encoder (ACL 2024, arXiv 2406.17262)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from d2llm.index import Index
    from d2llm.student import D2LLM
    from d2llm.teacher.model import Teacher

__all__ = ["D2LLM", "Index", "Teacher"]
__version__ = "0.1.0"

_WHERE = {"D2LLM": "d2llm.student", "Index": "d2llm.index", "Teacher": "d2llm.teacher.model"}


def __getattr__(name: str) -> Any:
    # Imported when asked for: torch and transformers take seconds, which `d2llm --help` need not spend.
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)
