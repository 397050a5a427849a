"""The module PMA: parity with the literal formula, options, masks, warm start."""

import pytest
import torch

import d2llm_kernels as dk
from tests.contract import assert_within, run
from tests.kernels.cases import twins


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ln": False},
        {"residual": "projected"},
        {"num_seeds": 3},
        {"out_dim": 24},
        {"out_dim": 24, "num_seeds": 2, "normalize": True, "residual": "projected"},
        {"init": "warm"},
    ],
)
@pytest.mark.parametrize("packed", (False, True))
def test_it_equals_the_literal_formula(options, packed):
    options = {"init": "xavier", **options}
    folded, literal = twins(lambda backend: dk.PMA(36, 6, backend=backend, **options))
    x = torch.randn(4, 11, 36, dtype=torch.float64)
    lengths = torch.tensor([11, 0, 5, 1])
    mask = torch.arange(11) < lengths[:, None]
    if packed:
        cu = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
        outs = [run(lambda x, m=m: (m(x, cu_seqlens=cu),), (x[mask],)) for m in (folded, literal)]
    else:
        outs = [run(lambda x, m=m: (m(x, mask),), (x,)) for m in (folded, literal)]
    for one, two in zip((*outs[0][0], *outs[0][1]), (*outs[1][0], *outs[1][1]), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-10)


def test_parameter_gradients_equal_the_literal_ones():
    folded, literal = twins(lambda backend: dk.PMA(24, 4, backend=backend, init="xavier"))
    x = torch.randn(3, 7, 24, dtype=torch.float64)
    for module in (folded, literal):
        module(x).square().sum().backward()
    for (name, one), two in zip(folded.named_parameters(), literal.parameters(), strict=True):
        if name == "mab.fc_k.bias":
            assert not one.requires_grad
            continue
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_contract(dtype):
    folded, literal = twins(lambda backend: dk.PMA(576, 9, backend=backend, init="xavier"), dtype)
    x, mask = torch.randn(3, 63, 576).to(dtype), torch.rand(3, 63) < 0.8
    with torch.no_grad():
        got, same, exact = folded(x, mask), literal(x, mask), literal.double()(x.double(), mask)
    assert_within(got, same, exact, dtype)


def test_shapes():
    x = torch.randn(1, 5, 32)
    assert dk.PMA(32, 4)(x).shape == (1, 32)
    assert dk.PMA(32, 4, num_seeds=2)(x).shape == (1, 2, 32)
    assert dk.PMA(32, 4, out_dim=8)(x).shape == (1, 8)
    assert dk.PMA(32, 4)(torch.randn(0, 5, 32)).shape == (0, 32)
    assert dk.PMA(32, 4, normalize=True)(x).norm().item() == pytest.approx(1.0)


@pytest.mark.parametrize("options", [{}, {"num_seeds": 3}, {"residual": "projected"}, {"out_dim": 8, "ln": False}])
def test_queries_folded_beforehand_change_nothing(options):
    pma, x, mask = dk.PMA(32, 4, init="xavier", **options), torch.randn(3, 9, 32), torch.rand(3, 9) < 0.7
    expected, u = pma(x, mask), pma.folded_queries()
    assert torch.equal(pma(x, mask, u=u), expected)
    # They are the caller's: a change of the parameters neither reaches them nor is missed without them.
    with torch.no_grad():
        pma.mab.fc_k.weight.data.mul_(2)
    assert torch.equal(pma.folded_queries(), 2 * u)
    assert not torch.equal(pma(x, mask), expected)
    with pytest.raises(dk.ArgumentError, match="^u: expected shape"):
        pma(x, mask, u=u[1:])


@pytest.mark.parametrize("options", [{}, {"num_seeds": 2}, {"residual": "projected"}])
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_a_mask_that_masks_nothing_changes_no_bit(options, dtype):
    pma, x = dk.PMA(32, 4, init="xavier", backend="folded", **options).to(dtype), torch.randn(3, 9, 32).to(dtype)
    whole = pma(x)
    assert torch.equal(pma(x, torch.ones(3, 9, dtype=torch.bool)), whole)
    assert torch.equal(pma(x.flatten(0, 1), cu_seqlens=torch.arange(0, 28, 9)), whole)


def test_a_batch_without_tokens_is_the_residual_alone():
    pma = dk.PMA(32, 4, init="xavier")
    torch.nn.init.ones_(pma.mab.fc_v.bias)
    empty = pma(torch.randn(2, 6, 32), torch.zeros(2, 6, dtype=torch.bool))
    assert torch.equal(pma(torch.randn(2, 0, 32)), empty)


def test_it_keeps_float32_where_the_backbone_is_half():
    pma, x = dk.PMA(32, 4), torch.randn(2, 9, 32).bfloat16()
    y = pma(x)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, pma(x.float()), rtol=1e-4, atol=1e-4)


def test_all_masked_row_is_the_residual_alone():
    pma = dk.PMA(32, 4, init="xavier")
    mask = torch.zeros(1, 6, dtype=torch.bool)
    mab = pma.mab
    out = mab.ln0(pma.S)
    expected = mab.ln1(out + torch.relu(mab.fc_o(out)))[0]
    torch.testing.assert_close(pma(torch.randn(1, 6, 32), mask), expected)


def test_when_warm_it_is_mean_pooling():
    torch.manual_seed(0)
    pma, x = dk.PMA(64, 8), torch.randn(4, 12, 64) + torch.randn(4, 1, 64)
    mask = torch.arange(12) < torch.tensor([12, 5, 1, 9])[:, None]
    mean = (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    expected = torch.nn.functional.layer_norm(mean, (64,))
    assert (pma(x, mask) - expected).abs().max() < 0.1
    pma(x, mask).square().sum().backward()
    trainable = {name for name, p in pma.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert {"S", "mab.fc_v.weight", "mab.fc_o.weight", "mab.fc_q.weight"} <= trainable
