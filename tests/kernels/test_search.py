"""Search by a prepared branch: chunks give what one block gives, in every number type that passages are stored in."""

import math
from itertools import pairwise

import pytest
import torch

import d2llm_kernels as dk
from d2llm_kernels import backends, int8
from d2llm_kernels.rough import search
from d2llm_kernels.rough.candidates import Best, candidates
from tests.kernels.cases import BACKENDS, needs_even_products

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int8)


def iem(backend="auto", hidden=32):
    torch.manual_seed(0)
    return dk.IEM(16, hidden, backend=backend, init="xavier").requires_grad_(False)


def stored(rows, dtype):
    return int8.Int8Rows.of(rows) if dtype == torch.int8 else rows.to(dtype)


def cut(rows, *sizes):
    starts = [0]
    for size in (*sizes, len(rows)):
        starts.append(min(len(rows), starts[-1] + size))
    return [rows[low:high] for low, high in pairwise(starts)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("k", (1, 7))
def test_chunks_give_what_one_block_gives(backend, dtype, k, monkeypatch):
    needs_even_products(backend, torch.float32, 32)
    monkeypatch.setattr(search, "_BLOCK", 50)
    head = iem(backend)
    a, rows = head.project_queries(torch.randn(3, 16)), stored(head.project_passages(torch.randn(700, 16)), dtype)
    exact = dk.functional.iem_scores(a, rows.widened() if dtype == torch.int8 else rows.float(), *head._branch(1))
    ready = head.prepare(1, dtype)
    whole = ready.topk(a, [rows], k)
    for sizes in ((), (1, 0, 300), (137, 137, 137)):
        values, indices = ready.topk(a, cut(rows, *sizes), k)
        torch.testing.assert_close(values, whole[0])
        assert torch.equal(indices, whole[1])
    # Many more candidates than are asked for: of so few passages none that is among the best is missed.
    torch.testing.assert_close(whole[0], exact.topk(k).values)
    torch.testing.assert_close(exact.gather(1, whole[1]), whole[0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scores_of_all_are_those_that_choose_candidates(backend, dtype, monkeypatch):
    needs_even_products(backend, torch.float32, 32)
    monkeypatch.setattr(search, "_BLOCK", 50)
    head = iem(backend)
    a, rows = head.project_queries(torch.randn(3, 16)), stored(head.project_passages(torch.randn(300, 16)), dtype)
    exact = dk.functional.iem_scores(a, rows.widened() if dtype == torch.int8 else rows.float(), *head._branch(1))
    ready = head.prepare(1, dtype)
    scores = ready.scores(a, cut(rows, 1, 0, 137))
    assert scores.shape == exact.shape and ready.scores(a, []).shape == (3, 0)
    # Eight bits of hidden values and weight, or of bfloat16; what is not rounded is exact.
    rounded = ready._rough is not None
    torch.testing.assert_close(scores.float(), exact, rtol=0, atol=0.05 * float(exact.std()) if rounded else 1e-4)
    with pytest.raises(dk.ArgumentError, match=r"chunks\[0\]: expected shape"):
        ready.scores(a, [rows[:, :8] if dtype != torch.int8 else stored(torch.randn(5, 8), dtype)])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equal_passages_keep_their_order_over_chunks(dtype):
    needs_even_products("folded" if backends.missing("cpu") else "cpu", torch.float32, 32)
    head = iem()
    a, rows = head.project_queries(torch.randn(2, 16)), head.project_passages(torch.randn(1, 16)).expand(900, -1)
    _, indices = head.prepare(0, dtype).topk(a, cut(stored(rows, dtype), 10, 500), 30)
    assert torch.equal(indices, torch.arange(30).expand(2, 30))


def test_later_changes_of_the_weights_do_not_count():
    head = iem()
    a, b = head.project_queries(torch.randn(2, 16)), head.project_passages(torch.randn(300, 16))
    for dtype in DTYPES[2:]:
        ready, rows = head.prepare(1, dtype), stored(b, dtype)
        before = ready.topk(a, [rows], 5)
        kept = {name: value.clone() for name, value in head.state_dict().items()}
        for parameter in head.parameters():
            parameter.mul_(-1)
        after = ready.topk(a, [rows], 5)
        head.load_state_dict(kept)
        assert all(torch.equal(one, two) for one, two in zip(before, after, strict=True))


def test_passages_that_are_not_numbers_come_last():
    head = iem()
    a, b = head.project_queries(torch.randn(2, 16)), head.project_passages(torch.randn(300, 16))
    b[7] = math.nan
    for dtype in DTYPES[:3]:
        values, indices = head.prepare(1, dtype).topk(a, cut(b.to(dtype), 100), 300)
        assert (indices[:, -1] == 7).all() and (values[:, -1] == -math.inf).all()


def test_no_queries_and_empty_chunks():
    head = iem()
    b = head.project_passages(torch.randn(300, 16))
    for dtype in DTYPES:
        values, indices = head.prepare(0, dtype).topk(b[:0], cut(stored(b, dtype), 0, 20, 0), 4)
        assert values.shape == indices.shape == (0, 4) and indices.dtype == torch.int64


def test_what_does_not_fit_is_refused():
    head = iem()
    a, b = head.project_queries(torch.randn(2, 16)), head.project_passages(torch.randn(30, 16))
    with pytest.raises(dk.ArgumentError, match=r"^dtype: expected a floating dtype or torch.int8, got int32"):
        head.prepare(0, torch.int32)
    for task in (2, -1, True, torch.tensor(0)):
        with pytest.raises(dk.ArgumentError, match=r"^task: expected an int in 0..1, got"):
            head.prepare(task, torch.float32)
    ready = head.prepare(0, torch.bfloat16)
    with pytest.raises(dk.ArgumentError, match=r"^chunks\[1\]: expected bfloat16, got float32"):
        ready.topk(a, [b.bfloat16(), b], 3)
    with pytest.raises(dk.ArgumentError, match=r"^chunks\[0\]: expected shape \(N, 32\), got \(30, 31\)"):
        ready.topk(a, [b.bfloat16()[:, 1:]], 3)
    with pytest.raises(dk.ArgumentError, match=r"^a: expected shape \(Nq, 32\), got \(2, 31\)"):
        ready.topk(a[:, 1:], [b.bfloat16()], 3)
    for k in (0, 31):
        with pytest.raises(dk.ArgumentError, match=r"^k: expected between 1 and the number of passages"):
            ready.topk(a, [b.bfloat16()], k)
    with pytest.raises(dk.BackendError, match=r"^backend='cpu' cannot serve iem_topk: the C\+\+ kernels take"):
        iem("cpu").double().prepare(0, torch.float64)


@pytest.mark.cpu
@pytest.mark.parametrize("dtype", DTYPES[2:], ids=str)
def test_candidates_are_chosen_by_rounded_scores_and_ranked_once(dtype, monkeypatch):
    """However many chunks there are, as many candidates as one block has are scored again."""
    head, scored, original = iem("cpu"), [], dk.functional.iem_pairs

    def pairs(a, b, *branch, backend):
        scored.append(b)
        return original(a, b, *branch, backend=backend)

    monkeypatch.setattr(dk.functional, "iem_pairs", pairs)
    a, rows = head.project_queries(torch.randn(2, 16)), stored(head.project_passages(torch.randn(900, 16)), dtype)
    head.prepare(0, dtype).topk(a, cut(rows, 200, 200, 200), 5)
    assert [tuple(some.shape) for some in scored] == [(2, candidates(5), 32)]


def test_the_best_so_far_are_those_of_all():
    generator = torch.Generator().manual_seed(0)
    # Few values: many are equal.
    scores = torch.randint(5, (3, 40), generator=generator).float()
    for k in (1, 6, 40):
        best = Best.of_none(scores, k)
        for start in range(0, 40, 7):
            values, order = scores[:, start : start + 7].sort(dim=1, descending=True, stable=True)
            best.add(values[:, :k], order[:, :k] + start)
        values, order = scores.sort(dim=1, descending=True, stable=True)
        assert torch.equal(best.values, values[:, :k]) and torch.equal(best.indices, order[:, :k])
