"""A small student, an index of it, and the application on both."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import PASSAGES, Client

from d2llm.index import Index
from d2llm.serve.app import create_app
from d2llm.serve.engine import Engine
from d2llm.serve.limits import Limits
from d2llm.student import D2LLM
from d2llm.teacher.scoring import Judge


@pytest.fixture(scope="session")
def student(base_model: str) -> D2LLM:
    return D2LLM.create(base_model, lora_r=0, iem_hidden=8, query_length=16, passage_length=24)


@pytest.fixture
def served(student: D2LLM, tmp_path: Path) -> Path:
    Index.build(student, PASSAGES, tmp_path / "corpus.index")
    return tmp_path / "corpus.index"


@pytest.fixture
def client(student: D2LLM, served: Path) -> Iterator[Client]:
    """Clients of an application, with ``Limits`` and ``create_app`` given as asked for."""
    engines = []

    def make(
        limits: Limits | None = None, index: bool = True, judge: Judge | None = None, **options: Any
    ) -> httpx.AsyncClient:
        engine = Engine(student, served if index else None, "d2llm", limits or Limits(), judge)
        engines.append(engine)
        app = create_app(engine, **options)
        return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")

    yield make
    for engine in engines:
        engine.close()
