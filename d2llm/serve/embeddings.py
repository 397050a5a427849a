"""Embeddings as OpenAI's clients ask for them: ``POST /v1/embeddings``, ``GET /v1/models``."""

import base64
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from pydantic import BaseModel

from d2llm.serve.engine import Engine
from d2llm.serve.refusal import Refusal
from d2llm.student.encoding import KINDS

router = APIRouter(prefix="/v1", tags=["OpenAI"])


class EmbeddingRequest(BaseModel):
    """What the clients send."""

    input: str | list[str] | list[int] | list[list[int]]
    model: str
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str | None = None


@router.post("/embeddings")
async def embeddings(asked: EmbeddingRequest, request: Request) -> dict[str, Any]:
    """Unit vectors (D,) of texts.

    ``NAME:query`` and ``NAME:passage`` are models of their own, since the dialect has no field for it: the student cuts
    queries and passages at different lengths. ``NAME`` alone stands for passages.
    """
    engine: Engine = request.app.state.engine
    kind = _kind(asked.model, engine.name)
    given = [asked.input] if isinstance(asked.input, str) else asked.input
    texts = [text for text in given if isinstance(text, str)]
    if len(texts) != len(given):
        raise Refusal(
            400,
            "input: expected texts, got token ids, which belong to another tokenizer; in LangChain set "
            "OpenAIEmbeddings(check_embedding_ctx_length=False)",
            param="input",
        )
    engine.check_texts(texts, "input")
    if asked.dimensions not in (None, engine.student.dim):
        raise Refusal(
            400, f"dimensions: the model has {engine.student.dim}, got {asked.dimensions}", param="dimensions"
        )
    vectors = await engine.embed(texts, kind)
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    tokens = await engine.work(lambda: engine.tokens(texts))
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": row, "embedding": _written(vector, asked.encoding_format)}
            for row, vector in enumerate(unit.astype("<f4"))
        ],
        "model": asked.model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


@router.get("/models")
async def models(request: Request) -> dict[str, Any]:
    """The model's names."""
    name = request.app.state.engine.name
    names = [name, *(f"{name}:{kind}" for kind in KINDS)]
    data = [{"id": each, "object": "model", "created": 0, "owned_by": "d2llm"} for each in names]
    return {"object": "list", "data": data}


def _kind(model: str, name: str) -> str:
    base, _, kind = model.partition(":") if model.startswith(f"{name}:") else (model, "", "passage")
    if base != name or kind not in KINDS:
        raise Refusal(
            404,
            f"model: expected {name}, {name}:query or {name}:passage, got {model[:200]!r}",
            param="model",
            code="model_not_found",
        )
    return kind


def _written(vector: np.ndarray, encoding: str) -> str | list[float]:
    return base64.b64encode(vector.tobytes()).decode() if encoding == "base64" else vector.tolist()
