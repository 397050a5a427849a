"""A cluster of two workers on this machine: what it finds is what one process finds, bit for bit, whoever dies."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ray = pytest.importorskip("ray")
pytest.importorskip("faiss")

from d2llm import D2LLM  # noqa: E402
from d2llm.cluster import ClusterEncoder, ClusterIndex, connect  # noqa: E402
from d2llm.errors import InputError, MissingError  # noqa: E402
from d2llm.index import Index, asking  # noqa: E402
from d2llm.shipped import STUDENT  # noqa: E402
from tests.index.index_fakes import WordEncoder, corpus  # noqa: E402

COUNT = 700
QUERIES = ["red item7", "old new", "slow fast item40", "unknown words"]
# tests/index/test_index_parts.py has more ways, and other dtypes, without a cluster.
WAYS: list[dict[str, Any]] = [
    {"mode": "hybrid"},
    {"mode": "iem", "k": COUNT + 1},
    {"mode": "cosine", "filters": {"part": {"gte": 3}}},
    {"mode": "iem", "channels": ["surrogate"], "candidates": 60},
    # By the engine.
    {"mode": "iem", "recall": 0.8, "k": 5},
    {"mode": "hybrid", "given": [["1", "300", "7"]] * len(QUERIES)},
]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    connect(workers=2)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Segments of 90, some passages deleted, some twice, so that there are ties, some appended after a fit."""
    texts = corpus(COUNT)
    texts[300:320] = texts[:20]
    metadata = [{"part": row // 90} for row in range(COUNT)]
    index = Index.build(
        WordEncoder(),
        texts,
        tmp_path_factory.mktemp("cluster") / "ix",
        metadata=metadata,
        shard_size=90,
        dtype="int8",
        progress=False,
    )
    index.fit_surrogate(corpus(200), rank=16, engine="ivf", progress=False)
    index.append(["red item7 again"], ["new"], progress=False)
    index.delete(["7", "180", "699"])
    return index


@pytest.fixture(scope="module")
def shared(alone: Index) -> Iterator[ClusterIndex]:
    index = ClusterIndex.open(alone.path, WordEncoder(), workers=2)
    yield index
    index.close()


def kill(index: ClusterIndex) -> None:
    """The first worker, as the system kills one."""
    process = ray.get(index._workers._actors[0].__ray_call__.remote(lambda _: os.getpid()))
    os.kill(process, signal.SIGKILL)


def test_it_finds_what_one_process_finds(alone: Index, shared: ClusterIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "_WORTH", 1)
    assert len(shared._workers) == 2
    for way in WAYS:
        options = {"k": 10, "explain": True, **way}
        assert shared.search(QUERIES, **options) == alone.search(QUERIES, **options), way
    vectors = WordEncoder().encode(QUERIES, kind="query", batch_size=1, show_progress=False)
    assert shared.search_vectors(vectors) == alone.search_vectors(vectors)
    with pytest.raises(InputError, match="filters: other: unknown field"):
        shared.search("red", filters={"other": 1})


def test_a_worker_that_is_killed_comes_back_and_the_query_is_answered(alone: Index, shared: ClusterIndex) -> None:
    kill(shared)
    assert shared.search(QUERIES) == alone.search(QUERIES)


def test_a_worker_that_cannot_come_back_is_told_of(tmp_path: Path) -> None:
    Index.build(WordEncoder(), corpus(20), tmp_path / "ix", shard_size=10, progress=False)
    index = ClusterIndex.open(tmp_path / "ix", WordEncoder(), workers=2)
    index.search("red")
    # The state that it shows is gone: a worker could only come back to another one.
    Index.build(WordEncoder(), corpus(30)[20:], tmp_path / "ix", progress=False, overwrite=True)
    kill(index)
    with pytest.raises(MissingError, match=r"cluster: a worker died .* file not found"):
        index.search("red")
    index.close()


def test_a_build_is_encoded_by_the_workers(tmp_path: Path) -> None:
    texts = corpus(40)
    # In the number type that the workers load it in.
    student = D2LLM.from_pretrained(STUDENT)
    encoder = ClusterEncoder(STUDENT, workers=2)
    built = Index.build(encoder, texts, tmp_path / "ix", shard_size=25, progress=False)
    one = Index.build(student, texts, tmp_path / "one", shard_size=25, progress=False)
    assert built._snapshot.manifest.model == one._snapshot.manifest.model
    for stored in ("projected", "unit"):
        made, expected = (each._snapshot.gather(each._snapshot.live, stored).float() for each in (built, one))
        np.testing.assert_allclose(made, expected, rtol=0.02, atol=0.02)
    assert [hit.id for hit in built.search("red item7", 3)[0]] == [hit.id for hit in one.search("red item7", 3)[0]]
    encoder.close()
