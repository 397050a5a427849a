"""Attention pooling on GPUs, by every backend: parity, masks, packed batches, gradients, determinism, memory."""

import math
from functools import partial

import pytest
import torch

import d2llm_kernels as dk
from d2llm_kernels import reference
from tests.contract import assert_parity, guarded, run
from tests.gpu.conftest import BFLOAT16, FLOAT16, INTERPRETED

pytestmark = pytest.mark.usefixtures("backend")

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# A lone token, a width that no block divides, many slots; for the interpreter's smaller tiles fewer of each.
SIZES = (
    [(1, 1, 200, 9), (2, 35, 350, 8), (2, 67, 64, 1)]
    if INTERPRETED
    else [(1, 1, 576, 9), (2, 63, 1000, 8), (2, 257, 64, 1)]
)


def pool(x, u, **where):
    return dk.functional.attn_pool(x, u, **where)


def assert_equal(one, two):
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("dtype", (torch.float32, FLOAT16, BFLOAT16))
@pytest.mark.parametrize("batch,length,dim,heads", SIZES)
def test_parity(make_tokens, batch, length, dim, heads, dtype):
    x, u, mask = make_tokens(batch, length, dim, heads)
    for kept in (None, mask):
        assert_parity(partial(pool, mask=kept), partial(reference.attn_pool, mask=kept), (x, u), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_parity_packed_with_empty_sequences(make_tokens, dtype):
    x, u, _ = make_tokens(1, 70, 80, 4)
    cu = torch.tensor([0, 0, 7, 8, 8, 70, 70], dtype=torch.int32, device=x.device)
    assert_parity(partial(pool, cu_seqlens=cu), partial(reference.attn_pool, cu_seqlens=cu), (x[0], u), dtype)


@pytest.mark.parametrize("heads", (64, 70))
def test_more_heads_than_one_launch_takes(make_tokens, heads):
    x, u, mask = make_tokens(2, 19, 64, heads)
    assert_parity(partial(pool, mask=mask), partial(reference.attn_pool, mask=mask), (x, u), torch.float32)


@pytest.mark.real
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch,length,dim,heads", [(3, 300, 4096, 32), (2, 40, 8192, 64), (5, 129, 1024, 16)])
def test_parity_at_the_widths_of_llms(make_tokens, batch, length, dim, heads, dtype):
    x, u, mask = make_tokens(batch, length, dim, heads)
    assert_parity(partial(pool, mask=mask), partial(reference.attn_pool, mask=mask), (x, u), dtype)


def test_mixed_dtypes_are_promoted(make_tokens):
    x, u, mask = make_tokens(2, 20, 64, 4, torch.float32)
    pooled, lse = pool(x.bfloat16(), u, mask=mask)
    expected = reference.attn_pool(x.bfloat16().float(), u, mask)
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled, expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lse, expected[1], rtol=1e-5, atol=1e-5)


def test_large_logits_stay_finite(make_tokens):
    x, u, mask = make_tokens(2, 33, 64, 4, scale=1e4)
    assert reference.attn_pool(x, u, mask)[1].abs().max() > 1e4
    assert_parity(partial(pool, mask=mask), partial(reference.attn_pool, mask=mask), (x, u), torch.float32)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_masked_tokens_are_not_read_and_an_all_masked_row_pools_to_zero(make_tokens, dtype):
    x, u, mask = make_tokens(3, 37, 96, 4, dtype)
    mask[1] = False
    clean, dirty = (run(partial(pool, mask=mask), (t, u)) for t in (x, x.masked_fill(~mask[..., None], math.nan)))
    assert_equal((*clean[0], *clean[1]), (*dirty[0], *dirty[1]))
    (pooled, lse), (dx, _) = dirty
    assert (pooled[1] == 0).all() and (lse[1] == -math.inf).all() and (dx[~mask] == 0).all()


def test_nan_in_a_valid_token_reaches_its_own_row_alone(make_tokens):
    x, u, _ = make_tokens(3, 20, 64, 4, torch.float32)
    x[1, 5, 3] = math.nan
    pooled, lse = pool(x, u)
    assert pooled[1, :, 3].isnan().all() and lse[1].isnan().all()
    assert pooled[::2].isfinite().all() and lse[::2].isfinite().all()


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_padded_and_packed_agree_bit_for_bit(make_tokens, dtype):
    x, u, _ = make_tokens(5, 40, 96, 6, dtype)
    lengths = torch.tensor([40, 1, 0, 17, 33], device=x.device)
    mask = torch.arange(40, device=x.device) < lengths[:, None]
    cu = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
    assert_equal(pool(x, u, mask=mask), pool(x[mask], u, cu_seqlens=cu))
    assert_equal(pool(x, u, mask=mask), pool(x, u, mask=mask.int()))


def test_a_row_does_not_depend_on_its_neighbours(make_tokens):
    x, u, mask = make_tokens(4, 50, 96, 4, torch.float32)
    together = run(partial(pool, mask=mask), (x, u))
    for row in range(4):
        alone = pool(x[row : row + 1], u, mask=mask[row : row + 1])
        assert_equal((together[0][0][row], together[0][1][row]), (alone[0][0], alone[1][0]))


def test_repeated_runs_are_bit_equal(make_tokens, device):
    x, u, mask = make_tokens(4, 63, 128, 4, torch.float32)
    first = run(partial(pool, mask=mask), (x, u))
    for _ in range(250 if device.type == "cuda" else 2):
        again = run(partial(pool, mask=mask), (x, u))
        assert_equal((*first[0], *first[1]), (*again[0], *again[1]))


def test_strided_inputs_and_expanded_gradients(make_tokens):
    x, u, mask = make_tokens(3, 20, 64, 4, torch.float32)
    cut = torch.cat([x, x], 1)[:, :20]
    doubled = torch.stack([x, x], -1)[..., 0]
    plain = x.clone().requires_grad_()
    pool(plain, u, mask=mask)[0].sum().backward()
    for view in (cut, doubled):
        leaf = view.detach().requires_grad_()
        pooled, _ = pool(leaf, guarded(u), mask=guarded(mask.float()).bool())
        pooled.sum().backward()
        assert_equal((pooled, leaf.grad), (pool(x, u, mask=mask)[0], plain.grad))


@pytest.mark.parametrize("heads", (4, 70))
def test_a_gradient_that_is_not_wanted_changes_nothing_about_the_other(make_tokens, heads):
    x, u, mask = make_tokens(2, 20, 64, heads, torch.float32)

    def gradients(*wanted):
        leaves = [t.clone().requires_grad_(want) for t, want in zip((x, u), wanted, strict=True)]
        pool(*leaves, mask=mask)[0].square().sum().backward()
        return [leaf.grad for leaf in leaves]

    dx, du = gradients(True, True)
    assert_equal(gradients(True, False)[:1], [dx])
    assert_equal(gradients(False, True)[1:], [du])


@pytest.mark.float64
def test_gradcheck(make_tokens):
    x, u, mask = make_tokens(2, 5, 6, 2)
    mask[0] = True
    mask[1, 1] = False
    args = (x.requires_grad_(), u.requires_grad_())
    assert torch.autograd.gradcheck(partial(pool, mask=mask), args, fast_mode=True)
    cu = torch.tensor([0, 4, 4, 10], device=x.device)
    packed = x.detach().flatten(0, 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, u: pool(x, u, cu_seqlens=cu)[0], (packed, u), fast_mode=True)


@pytest.mark.parametrize("packed", (False, True))
def test_opcheck(device, backend, packed):
    u = torch.randn(2, 16, device=device, requires_grad=True)
    if packed:
        x = torch.randn(9, 16, device=device, requires_grad=True)
        args = (x, u, None, torch.tensor([0, 4, 4, 9], device=device), backend)
    else:
        x = torch.randn(3, 5, 16, device=device, requires_grad=True)
        args = (x, u, torch.rand(3, 5, device=device) < 0.7, None, backend)
    torch.library.opcheck(torch.ops.d2llm.attn_pool, args)


@pytest.mark.float64
def test_float64_is_for_the_interpreter_alone(device, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    x, u = torch.randn(1, 3, 16), torch.randn(2, 16)
    with pytest.raises(
        dk.BackendError, match=r"backend='triton' cannot serve attn_pool: Triton kernels take CUDA or ROCm tensors"
    ):
        dk.functional.attn_pool(x, u, backend="triton")


@pytest.mark.parametrize("batch,length", [(0, 5), (3, 0)])
def test_no_rows_or_no_tokens(make_tokens, batch, length):
    x, u, _ = make_tokens(batch, length, 64, 4, torch.float32)
    (pooled, lse), gradients = run(pool, (x, u))
    assert pooled.shape == (batch, 4, 64) and (pooled == 0).all() and (lse == -math.inf).all()
    assert all((g == 0).all() for g in gradients)


@pytest.mark.real
def test_more_than_2_to_the_31_elements(device):
    batch, length, dim, heads = 33, 16384, 4096, 4
    x = torch.randn(batch, length, dim, device=device, dtype=torch.bfloat16)
    u = torch.randn(heads, dim, device=device, dtype=torch.bfloat16) / math.sqrt(dim)
    assert x.numel() > 2**31
    pooled, lse = pool(x, u)
    assert_equal((pooled[-1], lse[-1]), (t[0] for t in pool(x[-1:], u)))
    torch.testing.assert_close(pooled[-1:], reference.attn_pool(x[-1:], u)[0], rtol=2e-2, atol=2e-2)


@pytest.mark.real
def test_falling_offsets_on_the_device_neither_hang_nor_leave_the_batch(make_tokens):
    x, u, _ = make_tokens(1, 70, 64, 4, torch.float32)
    cu = torch.tensor([5, 60, 3, 900, 40, 64], dtype=torch.int32, device=x.device)
    pool(guarded(x[0]), u, cu_seqlens=cu)
    torch.cuda.synchronize()


@pytest.mark.real
def test_peak_memory_stays_under_the_formula(device):
    batch, length, dim, heads = 64, 256, 4096, 32
    x = torch.randn(batch, length, dim, device=device, dtype=torch.bfloat16, requires_grad=True)
    u = (torch.randn(heads, dim, device=device, dtype=torch.bfloat16) / math.sqrt(dim)).requires_grad_()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    pool(x, u)[0].sum().backward()
    rows, state = batch * length, batch * heads * dim
    # dx; pooled and its gradient; scores, products, a and ds, with as many parts again; du of 16 programs.
    allowed = 2 * rows * dim + 4 * state + 4 * rows * heads * 8 + 16 * heads * dim * 4 + (1 << 22)
    assert torch.cuda.max_memory_allocated() - before <= allowed
