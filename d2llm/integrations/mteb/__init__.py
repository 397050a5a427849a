"""A student in MTEB (extra ``mteb``): as an encoder, as a search over the index, on its tasks or on local data."""

from d2llm.requirements import require

require("mteb", "mteb")

from d2llm.integrations.mteb.encoder import D2LLMEncoder  # noqa: E402
from d2llm.integrations.mteb.search import D2LLMSearch  # noqa: E402
from d2llm.integrations.mteb.tasks import pair_task, retrieval_task  # noqa: E402

__all__ = ["D2LLMEncoder", "D2LLMSearch", "pair_task", "retrieval_task"]
