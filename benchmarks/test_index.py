"""The index on disk: building it from vectors, and exact search over it."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

import d2llm_kernels as dk
from benchmarks import backend
from d2llm.index import Index
from d2llm_kernels.measure.case import Case, Prepared, identity
from d2llm_kernels.measure.contract import Verdict, agreement

_D, _F, _K = 576, 512, 10
_DTYPES = (torch.float32, torch.bfloat16, torch.int8)


def cases(full: bool) -> Iterator[Case]:
    """The rows."""
    passages = 100_000
    for dtype in _DTYPES if full else (torch.bfloat16,):
        yield _build(passages, dtype)
    for dtype in _DTYPES:
        yield _search(passages, 1, dtype)
    if full:
        yield _search(passages, 8, torch.float32)
        for dtype in _DTYPES:
            yield _search(1_000_000, 1, dtype)
        yield _search(10_000, 1, torch.float32)


def _head() -> dk.IEM:
    torch.manual_seed(0)
    return dk.IEM(_D, _F, init="xavier").eval().requires_grad_(False)


def _make(folder: str, passages: int, dtype: torch.dtype) -> Index:
    vectors = torch.randn(passages, _D, generator=torch.Generator().manual_seed(1))
    return _write(folder, vectors, dtype)


def _write(folder: str, vectors: torch.Tensor, dtype: torch.dtype) -> Index:
    name = str(dtype).removeprefix("torch.")
    return Index.build(
        _head(), None, Path(folder) / "index", vectors=vectors, dtype=name, keep_vectors=False, progress=False
    )


def _bytes(folder: str) -> int:
    return sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())


def _build(passages: int, dtype: torch.dtype) -> Case:
    def prepare(device: torch.device) -> Prepared:
        vectors = torch.randn(passages, _D)

        def run() -> int:
            with tempfile.TemporaryDirectory() as folder:
                _write(folder, vectors, dtype)
                return _bytes(folder)

        def check(name: str) -> Verdict:
            """The best of what each backend's own index finds."""
            found = []
            for each in (name, "reference"):
                with backend.chosen(each), tempfile.TemporaryDirectory() as folder:
                    found.append(_scores(_write(folder, vectors[:1000], dtype), vectors[:4]))
            # Rounding to the stored dtype may go either way for a number that lies between two.
            return agreement(*found, torch.bfloat16 if dtype == torch.int8 else dtype)

        item = torch.empty(0, dtype=dtype).element_size()
        return Prepared(
            2 * passages * _D * _F,
            passages * (4 * _D + item * _F),
            backend.kernel(run),
            backend.literal(run),
            check,
            items=("passages", passages),
            facts={"bytes_per_passage": run() / passages},
        )

    return Case("index build from vectors", f"{passages} passages D={_D} F={_F}", dtype, 1, prepare)


def _search(passages: int, queries: int, dtype: torch.dtype) -> Case:
    def prepare(device: torch.device) -> Prepared:
        # It is removed when the row is done with.
        folder = tempfile.TemporaryDirectory()
        index = _make(folder.name, passages, dtype)
        asked = torch.randn(queries, _D)

        def run() -> torch.Tensor:
            return _scores(index, asked)

        def check(name: str) -> Verdict:
            return agreement(*(backend.under(each, run) for each in (name, "reference")), torch.float32)

        item = torch.empty(0, dtype=dtype).element_size()
        return Prepared(
            queries * passages * (2 * _F**2 + 4 * _F) + 2 * queries * _D * _F,
            item * passages * _F,
            backend.kernel(run),
            lambda wrap: backend.literal(run)(identity),
            check,
            items=("queries", queries),
            facts={"bytes_per_passage": _bytes(folder.name) / passages},
        )

    shape = f"{queries} quer{'y' if queries == 1 else 'ies'}, {passages} passages F={_F} k={_K}"
    # Literally, a million pairs take seconds a run.
    return Case("index search", shape, dtype, 1, prepare, literal=queries * passages <= 100_000)


def _scores(index: Index, queries: torch.Tensor) -> torch.Tensor:
    return torch.tensor([[hit.score for hit in hits] for hits in index.search_vectors(queries, _K)])


def test_index(outcome):
    assert "failure" not in outcome, outcome["failure"]
