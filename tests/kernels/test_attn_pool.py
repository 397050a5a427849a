"""Attention pooling: parity, masks, packed batches, gradients, memory, the operator."""

import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import d2llm_kernels as dk
from d2llm_kernels import reference
from tests import adversarial
from tests.contract import assert_parity, run
from tests.kernels.cases import (
    BACKENDS,
    CASES,
    PARITY,
    assert_same_on_any_threads,
    opcheck_backward,
    saved_for_backward,
)


def inputs(batch: int, length: int, dim: int, heads: int, seed: int = 0, scale: float = 1.0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, length, dim, generator=generator, dtype=torch.float64)
    u = torch.randn(heads, dim, generator=generator, dtype=torch.float64) * scale / math.sqrt(dim)
    mask = torch.rand(batch, length, generator=generator) < 0.7
    return x, u, mask


def pool(x, u, backend="folded", **kw):
    return dk.functional.attn_pool(x, u, backend=backend, **kw)


@pytest.mark.parametrize("backend,dtype,threads", PARITY, indirect=["threads"])
@pytest.mark.parametrize(
    "batch,length,dim,heads",
    [(1, 1, 576, 9), (3, 63, 1000, 8), (2, 257, 64, 4), (1, 63, 576, 9), (3, 300, 1033, 18), (1, 70, 2100, 32)],
)
def test_parity(batch, length, dim, heads, backend, dtype, threads):
    x, u, mask = inputs(batch, length, dim, heads)
    for kept in (None, mask, mask.int()):
        kernel, literal = partial(pool, backend=backend, mask=kept), partial(reference.attn_pool, mask=kept)
        assert_parity(kernel, literal, (x, u), dtype)


@pytest.mark.parametrize("backend,dtype,threads", PARITY, indirect=["threads"])
def test_parity_packed_with_empty_sequences(backend, dtype, threads):
    x, u, _ = inputs(1, 70, 48, 4)
    cu = torch.tensor([0, 0, 7, 8, 8, 70, 70], dtype=torch.int32)
    kernel, literal = partial(pool, backend=backend, cu_seqlens=cu), partial(reference.attn_pool, cu_seqlens=cu)
    assert_parity(kernel, literal, (x[0], u), dtype)


@pytest.mark.parametrize("backend,dtype", CASES)
@pytest.mark.parametrize("tokens", adversarial.TOKENS)
@pytest.mark.parametrize("batch,length,dim,heads", [(1, 1, 40, 3), (4, 64, 96, 5), (3, 131, 70, 9)])
def test_parity_where_scores_tie(batch, length, dim, heads, tokens, backend, dtype):
    x, u, mask = adversarial.pool(batch, length, dim, heads, tokens)
    for kept in (None, mask):
        kernel, literal = partial(pool, backend=backend, mask=kept), partial(reference.attn_pool, mask=kept)
        assert_parity(kernel, literal, (x, u), dtype)


@pytest.mark.parametrize("backend,dtype", CASES)
def test_equal_scores_give_the_mean_and_a_lone_token_itself(backend, dtype):
    """To the last bit, where the number of tokens is a power of two."""
    x, u, mask = (t.to(dtype) if t.is_floating_point() else t for t in adversarial.pool(3, 64, 96, 5, "no query"))
    pooled, lse = pool(x, u, backend)
    assert torch.equal(pooled, x.mean(1, dtype=torch.float64).to(dtype)[:, None].expand(pooled.shape))
    torch.testing.assert_close(lse, torch.full_like(lse, math.log(64)))
    x, u, mask = (t.to(dtype) if t.is_floating_point() else t for t in adversarial.pool(3, 64, 96, 5, "grid"))
    alone = pool(x, u, backend, mask=mask)[0][0]
    assert torch.equal(alone, x[0, 32].expand(5, 96))


def test_bfloat16_tokens_wider_than_a_block():
    x, u, _ = inputs(1, 300, 1024, 4)
    assert_parity(pool, reference.attn_pool, (x, u), torch.bfloat16)


@pytest.mark.parametrize("backend,dtype", [case for case in CASES if torch.bfloat16 not in case.values])
def test_large_logits_stay_finite(backend, dtype):
    x, u, mask = inputs(3, 33, 64, 4, scale=1e4)
    outputs, gradients = run(lambda x, u: pool(x, u, backend, mask=mask), (x.to(dtype), u.to(dtype)))
    assert all(t.isfinite().all() for t in (*outputs, *gradients))
    assert outputs[1].abs().max() > 1e4
    assert_parity(
        lambda x, u: pool(x, u, backend, mask=mask), lambda x, u: reference.attn_pool(x, u, mask), (x, u), dtype
    )


@pytest.mark.parametrize("backend", (*BACKENDS, "reference"))
def test_all_masked_rows_pool_to_zero(backend):
    x, u, mask = inputs(3, 9, 16, 2)
    x, u = x.float(), u.float()
    mask[1] = False
    leaf = x.clone().requires_grad_()
    pooled, lse = dk.functional.attn_pool(leaf, u, mask, backend=backend)
    assert (pooled[1] == 0).all() and (lse[1] == -math.inf).all()
    pooled.sum().backward()
    assert (leaf.grad[1] == 0).all() and leaf.grad.isfinite().all()


@pytest.mark.parametrize("backend", (*BACKENDS, "reference"))
def test_nan_in_masked_tokens_does_not_leak(backend):
    x, u, mask = inputs(4, 17, 16, 2)
    x, u = (x.float(), u.float()) if backend == "cpu" else (x, u)
    clean = run(lambda x, u: dk.functional.attn_pool(x, u, mask, backend=backend), (x, u))
    dirty = x.masked_fill(~mask[..., None], math.nan)
    got = run(lambda x, u: dk.functional.attn_pool(x, u, mask, backend=backend), (dirty, u))
    for a, b in zip((*clean[0], *clean[1]), (*got[0], *got[1]), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-14)
    assert (got[1][0][~mask] == 0).all()


@pytest.mark.parametrize("backend,dtype", CASES)
@pytest.mark.parametrize("dim", (96, 5, 33, 50, 130))
def test_padded_and_packed_agree_bit_for_bit(dim, backend, dtype):
    """In every width: rows of most begin anywhere in a line of the cache."""
    x, u, _ = inputs(5, 40, dim, 6)
    x, u = x.to(dtype), u.to(dtype)
    lengths = torch.tensor([40, 1, 0, 17, 33])
    mask = torch.arange(40) < lengths[:, None]
    cu = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
    padded, packed = pool(x, u, backend, mask=mask), pool(x[mask], u, backend, cu_seqlens=cu)
    left = pool(x.flip(1), u, backend, mask=mask.flip(1))[0]
    assert torch.equal(padded[0], packed[0]) and torch.equal(padded[1], packed[1])
    torch.testing.assert_close(left.float(), padded[0].float(), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(0, 12), min_size=1, max_size=6), seed=st.integers(0, 99), dim=st.integers(1, 40))
def test_a_row_does_not_depend_on_its_neighbours(backend, lengths, seed, dim):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(sum(lengths), dim, generator=generator)
    u = torch.randn(3, dim, generator=generator)
    cu = torch.tensor([0, *lengths]).cumsum(0)
    pooled, lse = pool(x, u, backend, cu_seqlens=cu)
    for row, (start, end) in enumerate(pairwise(cu.tolist())):
        alone, alone_lse = pool(x[start:end], u, backend, cu_seqlens=torch.tensor([0, end - start]))
        assert torch.equal(pooled[row], alone[0]) and torch.equal(lse[row], alone_lse[0])


def test_gradcheck():
    x, u, mask = inputs(3, 5, 6, 2)
    mask[0] = True
    mask[1, 1] = False
    args = (x.requires_grad_(), u.requires_grad_())
    assert torch.autograd.gradcheck(lambda x, u: pool(x, u, mask=mask)[0], args)
    assert torch.autograd.gradcheck(lambda x, u: pool(x, u), args)
    cu = torch.tensor([0, 4, 4, 15])
    packed = x.detach().flatten(0, 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, u: pool(x, u, cu_seqlens=cu)[0], (packed, u))


@pytest.mark.parametrize("backend,dtype", [case for case in CASES if torch.bfloat16 not in case.values])
def test_non_contiguous_inputs_and_expanded_gradients(backend, dtype):
    x, u, mask = (t.to(dtype) if t.is_floating_point() else t for t in inputs(3, 20, 32, 4))
    within = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-10, "atol": 1e-10}
    strided = torch.stack([x, x], -1)[..., 0]
    wide_u = torch.stack([u, u], -1)[..., 0]
    assert not strided.is_contiguous()
    leaf = strided.clone(memory_format=torch.preserve_format).requires_grad_()
    pooled, _ = pool(leaf, wide_u, backend, mask=mask)
    pooled.sum().backward()
    plain = x.clone().requires_grad_()
    reference.attn_pool(plain, u, mask)[0].sum().backward()
    torch.testing.assert_close(leaf.grad, plain.grad, **within)


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_the_inputs_are_saved_for_backward(backend):
    x, u, mask = (t for t in inputs(4, 50, 64, 4))
    x, u = x.float().requires_grad_(), u.float().requires_grad_()
    outputs = []
    kept = saved_for_backward(lambda: outputs.extend(pool(x, u, backend, mask=mask)))
    allowed = sum(t.untyped_storage().nbytes() for t in (x, u, mask, *outputs))
    assert 0 < sum(kept.values()) <= allowed


@pytest.mark.parametrize("backend", BACKENDS)
def test_repeated_runs_are_bit_equal(backend):
    x, u, mask = inputs(4, 63, 64, 4)
    one, two = (run(lambda x, u: pool(x, u, backend, mask=mask), (x.float(), u.float())) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip((*one[0], *one[1]), (*two[0], *two[1]), strict=True))


@pytest.mark.cpu
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("batch,length,dim,heads", [(5, 150, 100, 5), (1, 700, 130, 3)])
def test_bit_equal_for_any_number_of_threads(batch, length, dim, heads, dtype):
    """Of shapes that divide by no block, of several sequences and one long one."""
    x, u, mask = inputs(batch, length, dim, heads)
    assert_same_on_any_threads(lambda: pool(x.to(dtype), u.to(dtype), "cpu", mask=mask))


@pytest.mark.parametrize("backend", BACKENDS)
def test_mixed_dtypes_are_promoted_and_gradients_come_in_the_inputs_dtypes(backend):
    x, u = torch.randn(2, 5, 8).bfloat16().requires_grad_(), torch.randn(3, 8, requires_grad=True)
    pooled, lse = pool(x, u, backend)
    wide = pool(x.detach().float(), u.detach(), backend)
    assert torch.equal(pooled, wide[0]) and torch.equal(lse, wide[1])
    assert [g.dtype for g in torch.autograd.grad(pooled.sum(), (x, u))] == [torch.bfloat16, torch.float32]


@pytest.mark.parametrize("backend,dtype", CASES)
@pytest.mark.parametrize("packed", (False, True))
def test_a_gradient_that_is_not_wanted_changes_nothing_about_the_other(backend, dtype, packed):
    x, u, mask = inputs(3, 20, 32, 4)
    where = {"cu_seqlens": torch.tensor([0, 7, 7, 60])} if packed else {"mask": mask}
    x, u = (x.flatten(0, 1) if packed else x).to(dtype), u.to(dtype)
    both = gradients(backend, x, u, (True, True), where)
    for wanted in ((True, False), (False, True)):
        for one, two, want in zip(gradients(backend, x, u, wanted, where), both, wanted, strict=True):
            assert torch.equal(one, two) if want else one is None


def gradients(backend, x, u, wanted, where):
    leaves = [tensor.clone().requires_grad_(want) for tensor, want in zip((x, u), wanted, strict=True)]
    pool(*leaves, backend, **where)[0].square().sum().backward()
    return [leaf.grad for leaf in leaves]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("packed", (False, True))
def test_opcheck(packed, backend):
    u = torch.randn(2, 8, requires_grad=True)
    if packed:
        args = (torch.randn(9, 8, requires_grad=True), u, None, torch.tensor([0, 4, 4, 9]), backend)
    else:
        args = (torch.randn(3, 5, 8, requires_grad=True), u, torch.rand(3, 5) < 0.7, None, backend)
    torch.library.opcheck(torch.ops.d2llm.attn_pool, args)
    plain = tuple(t.detach() if isinstance(t, torch.Tensor) else t for t in args)
    dpooled, dlse = (torch.randn_like(t) for t in torch.ops.d2llm.attn_pool(*plain))
    opcheck_backward(torch.ops.d2llm.attn_pool_backward, dpooled, dlse, *plain)


def test_the_operator_returns_nothing_where_nothing_is_wanted():
    x, u, _ = inputs(2, 5, 8, 2)
    pooled, _ = torch.ops.d2llm.attn_pool(x, u, None, None, "folded")
    dx, du = torch.ops.d2llm.attn_pool_backward(pooled, None, x, u, None, None, "folded", (False, True))
    assert dx.shape == (0,) and du.shape == u.shape


def test_a_second_derivative_is_refused():
    x, u = torch.randn(1, 3, 4, requires_grad=True), torch.randn(2, 4)
    pooled, _ = pool(x, u)
    (gradient,) = torch.autograd.grad(pooled.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(gradient.sum(), x)


@pytest.mark.parametrize(
    "change,name",
    [
        ({"x": torch.zeros(2, 3)}, "x"),
        ({"x": torch.zeros(2, 3, 5)}, "x"),
        ({"x": torch.zeros(2, 3, 4, dtype=torch.int64)}, "x"),
        ({"u": torch.zeros(4)}, "u"),
        ({"x": torch.zeros(2, 3, 0), "u": torch.zeros(2, 0)}, "u"),
        ({"u": torch.zeros(2, 4, device="meta")}, "u"),
        ({"mask": torch.ones(2, 4, dtype=torch.bool)}, "mask"),
        ({"mask": torch.ones(2, 3)}, "mask"),
        ({"cu_seqlens": torch.tensor([0, 2])}, "x"),
        ({"x": torch.zeros(3, 4), "cu_seqlens": torch.tensor([0, 2])}, "cu_seqlens"),
        ({"x": torch.zeros(3, 4), "cu_seqlens": torch.tensor([0, 2, 1, 3])}, "cu_seqlens"),
        ({"x": torch.zeros(3, 4), "cu_seqlens": torch.tensor([0.0, 3.0])}, "cu_seqlens"),
    ],
)
def test_bad_arguments_are_named(change, name):
    arguments = {"x": torch.zeros(2, 3, 4), "u": torch.zeros(2, 4), **change}
    with pytest.raises(dk.ArgumentError, match=f"^{name}: expected"):
        dk.functional.attn_pool(**arguments)
