"""The application: routes, errors in each dialect's words, and the guard around it."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from d2llm.errors import D2LLMError
from d2llm.serve import embeddings, page, rerank, searching, status
from d2llm.serve.engine import Engine
from d2llm.serve.guard import Guard, Metrics
from d2llm.serve.refusal import Refusal

_LOG = logging.getLogger(__name__)
_ROUTERS = (embeddings.router, rerank.router, searching.router, status.router, page.router)


def create_app(
    engine: Engine, *, token: str | None = None, writable: bool = False, hosts: list[str] | None = None
) -> Any:
    """The server as an ASGI application.

    Args:
        engine: what it serves; closed with it.
        token: what clients must send as ``Authorization: Bearer``; None asks for nothing.
        writable: whether passages may be added and removed.
        hosts: names under which it may be called, so that a web page elsewhere cannot; None allows any.
    """
    metrics = Metrics(lambda: engine.batcher.waiting)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        engine.close()

    app = FastAPI(title="d2llm", lifespan=lifespan)
    app.state.engine, app.state.writable, app.state.metrics = engine, writable, metrics
    for router in _ROUTERS:
        app.include_router(router)
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(D2LLMError, _mendable)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _fault)
    if hosts is not None:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)
    paths = frozenset(path for path in app.openapi()["paths"] if "{" not in path)
    return Guard(app, engine.limits, token, metrics, paths)


def _answer(refusal: Refusal, request: Request) -> JSONResponse:
    return JSONResponse(refusal.body(request.url.path), refusal.status, headers=refusal.headers)


async def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Refusal)
    return _answer(error, request)


async def _mendable(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, D2LLMError)
    return _answer(Refusal.because(error), request)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(each) for each in first["loc"] if each != "body")
    message = f"{place[:200] or 'body'}: {str(first['msg'])[:200]}"
    openai = request.url.path in ("/v1/embeddings", "/score", "/v1/score")
    return _answer(Refusal(400 if openai else 422, message, param=place[:200] or None), request)


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return _answer(Refusal(error.status_code, str(error.detail)), request)


async def _fault(request: Request, error: Exception) -> JSONResponse:
    # The traceback goes to the log, which holds no text of the request.
    _LOG.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return _answer(Refusal(500, "the server failed; its log says where"), request)
