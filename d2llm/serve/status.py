"""What operators and orchestrators ask: health, readiness, facts, metrics."""

from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from d2llm.serve.engine import Engine

router = APIRouter(tags=["status"])


@router.get("/health")
@router.get("/ready")
async def health() -> dict[str, str]:
    """Whether it answers; it starts to when the model is loaded."""
    return {"status": "ok"}


@router.get("/info")
async def info(request: Request) -> dict[str, Any]:
    """The model, its limits and its index."""
    engine: Engine = request.app.state.engine
    index = engine.index()
    config = engine.student.config
    return {
        "model_id": engine.name,
        "version": version("d2llm"),
        "dimensions": engine.student.dim,
        "max_query_tokens": config.query_length,
        "max_passage_tokens": config.passage_length,
        "passages": None if index is None else len(index),
        "max_client_batch_size": engine.limits.texts,
        "writable": request.app.state.writable,
        "teacher": engine.judge is not None,
    }


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Prometheus' text."""
    return Response(request.app.state.metrics.text(), media_type=CONTENT_TYPE_LATEST)
