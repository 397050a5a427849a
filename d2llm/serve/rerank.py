"""Re-ranking as the clients of Jina, Cohere and TEI ask for it, and pairs' scores as vLLM gives them."""

import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from d2llm.serve.engine import Engine
from d2llm.serve.refusal import Refusal
from d2llm.tasks import ASYM

router = APIRouter(tags=["re-ranking"])


class Document(BaseModel):
    """A document given as an object."""

    text: str


class RerankRequest(BaseModel):
    """Jina's and Cohere's fields, or TEI's, which are told by ``texts``."""

    query: str
    documents: list[str | Document] | None = None
    texts: list[str] | None = None
    model: str | None = None
    top_n: int | None = Field(None, ge=1)
    return_documents: bool = False
    truncate: bool = False
    raw_scores: bool = False
    return_text: bool = False
    task: str = ASYM


class ScoreRequest(BaseModel):
    """vLLM's fields, under their newer or their older names."""

    queries: str | list[str] | None = None
    documents: str | list[str] | None = None
    text_1: str | list[str] | None = None
    text_2: str | list[str] | None = None
    model: str | None = None
    task: str = ASYM


@router.post("/rerank")
@router.post("/v1/rerank")
@router.post("/v2/rerank")
async def rerank(asked: RerankRequest, request: Request) -> Any:
    """Documents by falling relevance, which is the logistic function of the interaction module's logit."""
    engine: Engine = request.app.state.engine
    if (asked.documents is None) == (asked.texts is None):
        raise Refusal(422, "documents, texts: expected one of them, got both or neither", param="documents")
    if asked.texts is not None:
        return await _tei(engine, asked, asked.texts)
    documents = [each if isinstance(each, str) else each.text for each in asked.documents or ()]
    scores = _probability(await _scores(engine, asked.query, documents, asked.task))
    results = [
        {
            "index": int(row),
            "relevance_score": float(scores[row]),
            **({"document": {"text": documents[row]}} if asked.return_documents else {}),
        }
        for row in np.argsort(-scores, kind="stable")[: asked.top_n]
    ]
    tokens = await engine.work(lambda: engine.tokens([asked.query, *documents]))
    return {
        "id": uuid.uuid4().hex,
        "model": asked.model or engine.name,
        "results": results,
        "usage": {"total_tokens": tokens},
        # Cohere's client reads what it bills from here.
        "meta": {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}},
    }


async def _tei(engine: Engine, asked: RerankRequest, texts: list[str]) -> list[dict[str, Any]]:
    if not asked.truncate:
        config = engine.student.config
        await _check_lengths(engine, "query", [asked.query], config.query_length)
        await _check_lengths(engine, "texts", texts, config.passage_length)
    scores = await _scores(engine, asked.query, texts, asked.task, "texts")
    scores = scores if asked.raw_scores else _probability(scores)
    return [
        {"index": int(row), "score": float(scores[row]), **({"text": texts[row]} if asked.return_text else {})}
        for row in np.argsort(-scores, kind="stable")
    ]


async def _check_lengths(engine: Engine, name: str, texts: Sequence[str], most: int) -> None:
    """TEI refuses what it would have to cut."""
    engine.check_texts(texts, name)
    longest = await engine.work(lambda: max(engine.tokens([text]) for text in texts))
    if longest > most:
        raise Refusal(413, f"{name}: expected at most {most} tokens, got {longest}; or set truncate", param=name)


@router.post("/score")
@router.post("/v1/score")
async def score(asked: ScoreRequest, request: Request) -> dict[str, Any]:
    """Relevance of pairs: one query with every document, or as many queries as documents, one by one."""
    engine: Engine = request.app.state.engine
    queries = _listed(asked.text_1 if asked.queries is None else asked.queries, "queries")
    documents = _listed(asked.text_2 if asked.documents is None else asked.documents, "documents")
    if len(queries) not in (1, len(documents)):
        raise Refusal(
            400, f"documents: expected {len(queries)} as there are queries, got {len(documents)}", param="documents"
        )
    engine.check_texts(queries, "queries")
    engine.check_texts(documents, "documents")
    scores = await engine.scores(queries, documents, asked.task)
    tokens = await engine.work(lambda: engine.tokens([*queries, *documents]))
    return {
        "id": f"score-{uuid.uuid4().hex}",
        "object": "list",
        "created": 0,
        "model": asked.model or engine.name,
        "data": [
            {"index": row, "object": "score", "score": float(each)} for row, each in enumerate(_probability(scores))
        ],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


async def _scores(engine: Engine, query: str, texts: Sequence[str], task: str, name: str = "documents") -> np.ndarray:
    engine.check_texts([query], "query")
    engine.check_texts(texts, name)
    return await engine.scores([query], texts, task)


def _listed(texts: str | list[str] | None, name: str) -> list[str]:
    if texts is None:
        raise Refusal(400, f"{name}: expected a text or several, got none", param=name)
    return [texts] if isinstance(texts, str) else texts


def _probability(logits: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-z)) in float64, (N,)."""
    return 1 / (1 + np.exp(-np.clip(logits.astype(np.float64), -700, 700)))
