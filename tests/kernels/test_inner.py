"""The rows with the largest inner products: exact, in order, over any chunks; rows taken by number; scores of those."""

import pytest
import torch

import d2llm_kernels as dk
from d2llm_kernels import int8
from d2llm_kernels.rough import inner
from d2llm_kernels.rough.taking import Chunked, Int8Taken, widened
from tests.kernels.cases import BACKENDS, assert_same_on_any_threads

WIDTHS = (1, 24, 64, 100, 128, 192)


def numbers(count: int, width: int, largest: int = 127) -> torch.Tensor:
    draw = torch.Generator().manual_seed(count + width)
    return torch.randint(-largest - 1, largest + 1, (count, width), dtype=torch.int8, generator=draw)


def literal(queries, rows, k, kept=None):
    scores = (queries.long() @ rows.long().T).double()
    if kept is not None:
        scores[:, ~kept] = -torch.inf
    values, order = scores.sort(dim=1, descending=True, stable=True)
    return values[:, :k].int(), order[:, :k]


def assert_equal(got, expected):
    assert [each.dtype for each in got] == [torch.int32, torch.int64]
    assert all(torch.equal(*pair) for pair in zip(got, expected, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("width", WIDTHS)
def test_parity(backend, width):
    """Few different numbers make many equal products, whose order is that of the rows."""
    for largest in (127, 1):
        queries, rows = numbers(3, width, largest), numbers(1500, width, largest)
        for k in (1, 40, 1500):
            assert_equal(inner.topk(queries, [rows], k, backend=backend), literal(queries, rows, k))


@pytest.mark.parametrize("backend", BACKENDS)
def test_chunks_and_threads_change_nothing(backend):
    queries, rows = numbers(70, 64, 3), numbers(3000, 64, 3)
    expected = literal(queries, rows, 50)
    for sizes in ((3000,), (0, 1, 255, 2744), (1000, 0, 0, 2000, 0)):
        chunks = rows.split(sizes)
        assert_equal(inner.topk(queries, chunks, 50, backend=backend), expected)
        assert_same_on_any_threads(lambda chunks=chunks: inner.topk(queries, chunks, 50, backend=backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_that_do_not_count_are_not_found(backend):
    queries, rows = numbers(2, 64), numbers(1000, 64)
    kept = torch.rand(1000, generator=torch.Generator().manual_seed(0)) < 0.03
    for k in (5, 1000):
        got = inner.topk(queries, rows.split(300), k, kept, backend)
        assert_equal(got, literal(queries, rows, min(k, int(kept.sum())), kept))
    assert inner.topk(queries, [rows], 5, torch.zeros(1000, dtype=torch.bool), backend)[1].shape == (2, 0)
    assert inner.topk(queries[:0], [rows], 5, backend=backend)[1].shape == (0, 5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_need_not_lie_side_by_side(backend):
    queries, rows = numbers(4, 200)[::2, 3:131], numbers(900, 200)[1::2, 5:133]
    assert_equal(inner.topk(queries, [rows], 9, backend=backend), literal(queries, rows, 9))


def test_products_are_exact():
    queries, rows = numbers(3, 1024, 127), numbers(50, 1024, 127)
    queries[0], rows[0] = -128, -128
    assert torch.equal(inner.products(queries, rows), (queries.long() @ rows.long().T).float())


def test_what_does_not_fit_is_refused():
    queries, rows = numbers(2, 8), numbers(5, 8)
    for bad in (0, 6):
        with pytest.raises(dk.ArgumentError, match=r"^k: expected between 1 and the number of rows, 5, got"):
            inner.topk(queries, [rows], bad)
    with pytest.raises(
        dk.ArgumentError, match=r"^rows: expected shape \(n, 8\) in int8, got shape \(5, 8\) in float32"
    ):
        inner.topk(queries, [rows.float()], 2)
    with pytest.raises(
        dk.ArgumentError, match=r"^queries: expected shape \(n, 8\) in int8, got shape \(2, 8\) in int16"
    ):
        inner.topk(queries.short(), [rows], 2)
    with pytest.raises(dk.ArgumentError, match=r"^rows: expected shape \(n, 8\) in int8, got shape \(5, 7\) in int8"):
        inner.topk(queries, [rows, rows[:, 1:]], 2)
    with pytest.raises(dk.ArgumentError, match=r"^queries: expected shape \(Nq, R\), R to 1024"):
        inner.topk(numbers(2, 1025), [numbers(5, 1025)], 2)
    with pytest.raises(dk.ArgumentError, match=r"^kept: expected shape \(5,\) in bool, got \(4,\) in bool"):
        inner.topk(queries, [rows], 2, torch.ones(4, dtype=torch.bool))
    with pytest.raises(dk.ArgumentError, match=r"^numbers: expected numbers of rows, 0 to 4"):
        Chunked([rows]).take(torch.tensor([5]))


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16, torch.int8), ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_are_taken_and_scored_as_among_all(backend, dtype, monkeypatch):
    monkeypatch.setenv("D2LLM_KERNELS_BACKEND", backend)
    torch.manual_seed(0)
    head = dk.IEM(16, 32, backend=backend, init="xavier").requires_grad_(False)
    a, b = head.project_queries(torch.randn(2, 16)), head.project_passages(torch.randn(300, 16))
    chunks = [int8.Int8Rows.of(some) if dtype == torch.int8 else some.to(dtype) for some in b.split((130, 1, 169))]
    some = torch.tensor([0, 7, 129, 130, 131, 299])
    taken = Chunked(chunks).take(some)
    assert isinstance(taken, Int8Taken) == (dtype == torch.int8)
    whole = torch.cat([each.widened() if dtype == torch.int8 else each for each in chunks])
    assert torch.equal(widened(taken), whole[some])
    ready = head.prepare(1, dtype)
    torch.testing.assert_close(ready.scores_of(a[1], taken), ready.scores(a, chunks)[1, some])
    exact = dk.functional.iem_scores(a[1:], whole[some].float(), *head._branch(1), backend=backend)[0]
    torch.testing.assert_close(ready.scores_of(a[1], taken, exact=True), exact, rtol=1e-5, atol=1e-5)
    assert ready.scores_of(a[1], Chunked(chunks).take(some[:0])).shape == (0,)
