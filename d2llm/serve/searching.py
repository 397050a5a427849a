"""Search in the index, and its change: ``/search``, ``/documents``."""

import time
from dataclasses import asdict
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from d2llm.index import Index
from d2llm.index.hits import Hit
from d2llm.last_stage import JUDGED
from d2llm.serve.engine import Engine
from d2llm.serve.refusal import Refusal
from d2llm.tasks import ASYM

router = APIRouter(tags=["search"])


class SearchRequest(BaseModel):
    """A question; the fields are the arguments of :meth:`Index.search`, and whether a teacher orders the best anew."""

    query: str
    k: int = Field(10, ge=1)
    mode: str | None = None
    task: str = ASYM
    recall: float | None = None
    exact: bool = False
    explain: bool = False
    filters: dict[str, Any] | None = None
    teacher: bool = False


class NewDocument(BaseModel):
    """A passage to add, under an id that no other has."""

    id: str
    text: str
    metadata: dict[str, Any] = {}


@router.post("/search")
async def search(asked: SearchRequest, request: Request) -> dict[str, Any]:
    """The best passages of the index, best first."""
    engine: Engine = request.app.state.engine
    engine.check_texts([asked.query], "query")
    if asked.k > engine.limits.hits:
        raise Refusal(413, f"k: expected at most {engine.limits.hits}, got {asked.k}", param="k")
    start = time.perf_counter()
    if engine.path is None:
        raise _no_index()
    judge = engine.teacher() if asked.teacher else None
    # Here many queries wait together for one batch; threads that search are few, and none of them waits for it.
    vectors = None if asked.mode == "bm25" else await engine.embed([asked.query], "query")
    hits = await engine.work(lambda: _search(_index(engine), asked, vectors))
    if judge is not None:
        hits = await engine.reorder(judge, asked.query, hits, asked.task)
    return {"hits": [asdict(hit) for hit in hits[: asked.k]], "seconds": round(time.perf_counter() - start, 6)}


@router.post("/documents")
async def add(documents: list[NewDocument], request: Request) -> dict[str, Any]:
    """Add passages to the index, all or none of them."""
    engine = _writable(request)
    engine.check_texts([each.text for each in documents], "documents")

    def append() -> int:
        index = _index(engine)
        index.append([(each.id, each.text, each.metadata) for each in documents])
        # Who adds a passage finds it.
        engine.index(newest=True)
        return len(index)

    return {"added": len(documents), "passages": await engine.work(append)}


@router.delete("/documents/{name:path}")
async def delete(name: str, request: Request) -> dict[str, Any]:
    """Remove a passage from every later search."""
    engine = _writable(request)

    def remove() -> None:
        _index(engine).delete(name)
        engine.index(newest=True)

    await engine.work(remove)
    return {"deleted": name}


def _search(index: Index, asked: SearchRequest, vectors: np.ndarray | None) -> list[Hit]:
    return index.search(
        asked.query,
        # A teacher is given what it may bring up from below the k-th.
        max(asked.k, JUDGED) if asked.teacher else asked.k,
        task=asked.task,
        mode=asked.mode,
        recall=asked.recall,
        exact=asked.exact,
        explain=asked.explain,
        filters=asked.filters,
        vectors=vectors,
    )[0]


def _index(engine: Engine) -> Index:
    index = engine.index()
    if index is None:
        raise _no_index()
    return index


def _no_index() -> Refusal:
    return Refusal(404, "the server has no index; start it with --index")


def _writable(request: Request) -> Engine:
    if not request.app.state.writable:
        raise Refusal(403, "the index is served read-only; start the server with --writable")
    engine: Engine = request.app.state.engine
    return engine
