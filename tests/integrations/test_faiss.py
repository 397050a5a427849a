"""faiss as the engine of a surrogate: what it finds, what it misses, its file."""

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("faiss")

from d2llm.errors import FormatError
from d2llm.index import Index, asking, engines, surrogate
from d2llm_kernels import IEM

COUNT, DIM, RANK = 3000, 16, 32
ENGINES = [name for name in engines.ENGINES if name != "scan"]


def drawn(seed: int, count: int) -> np.ndarray:
    """Vectors in clusters, as those of texts are."""
    draw = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((40, DIM))
    return (centres[draw.integers(40, size=count)] + 0.5 * draw.standard_normal((count, DIM))).astype(np.float32)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surrogate, "_STEPS", 100)
    monkeypatch.setattr(asking, "_WORTH", 1)


@pytest.fixture(params=ENGINES)
def index(request: pytest.FixtureRequest, tmp_path: Path) -> Index:
    torch.manual_seed(0)
    made = Index.build(
        IEM(DIM, hidden=32), None, tmp_path / "ix", vectors=drawn(1, COUNT), shard_size=1100, progress=False
    )
    made.fit_surrogate(drawn(2, 200), rank=RANK, engine=request.param, progress=False)
    return made


def found(index: Index, **options: float | bool) -> np.ndarray:
    rows = index.search_vectors(drawn(3, 60), 5, **options)
    return np.array([[int(hit.id) for hit in row] for row in rows])


def shares(exact: np.ndarray, some: np.ndarray) -> float:
    return float((exact[:, :, None] == some[:, None]).any(2).mean())


def test_promises_hold_through_an_engine(index: Index) -> None:
    again = Index.open(index.path, verify=True)
    hits = again.search_vectors(drawn(3, 60), 5, recall=0.9, explain=True)
    assert {hit.promised for row in hits for hit in row} == {0.9}
    assert shares(found(again, exact=True), found(again, recall=0.9)) >= 0.9
    before = found(index, recall=0.9)
    index.delete([str(number) for number in before[:, 0]][:1])
    assert before[0, 0] not in found(index, recall=0.9)
    assert shares(found(index, exact=True), found(index, recall=0.9)) >= 0.9


def test_what_an_engine_misses_is_counted(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that finds little promises little, where another would promise it: all is scored then."""
    search = engines.FaissEngine.search

    def poor(engine, queries, count):  # type: ignore[no-untyped-def]
        values, numbers = search(engine, queries, count)
        numbers[numbers % 2 == 0] = -1
        return values, numbers

    monkeypatch.setattr(engines.FaissEngine, "search", poor)
    name = index._snapshot.manifest.surrogate.engine.name.partition(".")[0]
    index.fit_surrogate(drawn(2, 200), rank=RANK, engine=name, seed=1, progress=False)
    assert index.search_vectors(drawn(3, 1), 5, recall=0.9, explain=True)[0][0].promised == 1
    assert index.search_vectors(drawn(3, 1), 5, recall=0.2, explain=True)[0][0].promised == 0.2


def test_its_file_is_checked(index: Index) -> None:
    (path,) = index.path.glob("surrogate-*/*.faiss")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(FormatError, match=path.name):
        Index.open(index.path, verify=True)
    with pytest.raises(FormatError, match=path.name):
        found(Index.open(index.path), recall=0.9)
    path.write_bytes(content[:-1])
    with pytest.raises(FormatError, match=path.name):
        Index.open(index.path)
