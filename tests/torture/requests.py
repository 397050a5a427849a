"""Bodies of requests to the server: whatever comes, no traceback, and a fault of the client's at most."""

import asyncio
import json
import os
import random
from functools import cache
from pathlib import Path
from typing import Any

import httpx

from d2llm.index import Index
from d2llm.serve.app import create_app
from d2llm.serve.engine import Engine
from d2llm.serve.limits import Limits
from tests.torture import worker
from tests.torture.folders import student
from tests.torture.mutate import mutated_bytes, mutated_value

_TEXTS = ["open the file", "close the socket", "read x y z"]
#: Requests that are answered as they are.
_ASKED: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/v1/embeddings", {"input": _TEXTS, "model": "d2llm:query", "encoding_format": "base64", "user": "u"}),
    ("/v1/rerank", {"model": "d2llm", "query": "open", "documents": _TEXTS, "top_n": 2, "return_documents": True}),
    ("/v2/rerank", {"model": "d2llm", "query": "open", "documents": _TEXTS, "top_n": 2}),
    ("/rerank", {"query": "open", "texts": _TEXTS, "truncate": True, "raw_scores": False, "return_text": True}),
    ("/score", {"queries": "open", "documents": _TEXTS}),
    ("/score", {"text_1": _TEXTS, "text_2": _TEXTS[::-1]}),
    ("/search", {"query": "open", "k": 3, "mode": "hybrid", "filters": {"id": "0"}, "recall": 0.9, "explain": True}),
    ("/documents", {"documents": [{"id": "a", "text": "open"}]}),
)


@cache
def app() -> Any:
    """The server on a tiny student and an index of its own, in this process."""
    made = student()[1]
    index = Path(os.environ["TORTURE_STUDENT"]) / f"served-{os.getpid()}"
    Index.build(made, [(str(number), text) for number, text in enumerate(_TEXTS)], index, progress=False)
    return create_app(Engine(made, index, "d2llm", Limits()))


def bodies(generator: random.Random, folder: Path) -> bool:
    """A request with up to three changes of its values, or of its bytes."""
    path, body = generator.choice(_ASKED)
    body = json.loads(json.dumps(body))
    for _ in range(generator.randrange(4)):
        body = mutated_value(generator, body)
    content = json.dumps(body).encode()
    if generator.random() < 0.3:
        content = mutated_bytes(generator, content)
    answer = asyncio.run(_post(path, content))
    assert answer.status_code < 500, f"{path} {content!r}: {answer.status_code} {answer.text}"
    assert "Traceback" not in answer.text, f"{path} {content!r}: {answer.text}"
    return answer.status_code == 200


async def _post(path: str, content: bytes) -> httpx.Response:
    transport = httpx.ASGITransport(app(), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as session:
        return await session.post(path, content=content, headers={"Content-Type": "application/json"})


TARGETS: dict[str, worker.Try] = {"bodies": bodies}
