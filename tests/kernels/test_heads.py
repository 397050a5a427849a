"""The modules PMA and IEM: parity with the literal formulas, options, state dicts, warm start."""

import pytest
import torch

import d2llm_kernels as dk
from d2llm_kernels import reference
from tests.contract import assert_within, run

UPSTREAM_PMA = {"S"} | {
    f"mab.{layer}.{kind}" for layer in ("fc_q", "fc_k", "fc_v", "fc_o", "ln0", "ln1") for kind in ("weight", "bias")
}
UPSTREAM_IEM = {f"{layer}.{kind}" for layer in ("linear1", "proj0", "proj1", "linear2") for kind in ("weight", "bias")}


def twins(make, dtype=torch.float64):
    torch.manual_seed(0)
    folded = make(backend="folded").to(dtype)
    literal = make(backend="reference").to(dtype)
    literal.load_state_dict(folded.state_dict())
    return folded, literal


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
def test_pma_equals_the_literal_formula(options, packed):
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


def test_pma_parameter_gradients_equal_the_literal_ones():
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
def test_pma_contract(dtype):
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


def test_pma_keeps_float32_where_the_backbone_is_half():
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


def test_upstream_state_dict_names():
    pma, iem = dk.PMA(32, 4), dk.IEM(32, 16)
    assert set(pma.state_dict()) == UPSTREAM_PMA and set(iem.state_dict()) == UPSTREAM_IEM
    assert pma.S.shape == (1, 1, 32) and iem.linear1.weight.shape == (16, 64) and iem.linear2.weight.shape == (1, 16)


@pytest.mark.parametrize("task", (0, 1, torch.tensor([0, 1, 1, 0, 1]), torch.tensor([1, 1, 1, 1, 1])))
def test_iem_equals_the_literal_formula(task):
    folded, literal = twins(lambda backend: dk.IEM(20, 16, backend=backend, init="xavier"))
    q, p = torch.randn(5, 20, dtype=torch.float64), torch.randn(5, 20, dtype=torch.float64)
    passages = torch.randn(9, 20, dtype=torch.float64)

    def everything(iem, q, p):
        return (*iem(q, p, task, return_features=True), iem.score_all(q, passages, task))

    one, two = (run(lambda q, p, m=m: everything(m, q, p), (q, p)) for m in (folded, literal))
    for got, expected in zip((*one[0], *one[1]), (*two[0], *two[1]), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def test_iem_weights_learn_the_same():
    folded, literal = twins(lambda backend: dk.IEM(20, 16, backend=backend, init="xavier"))
    q, p, task = torch.randn(5, 20).double(), torch.randn(9, 20).double(), torch.tensor([0, 1, 1, 0, 1])
    for module in (folded, literal):
        module.score_all(q, p, task).square().sum().backward()
    for one, two in zip(folded.parameters(), literal.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-9, atol=1e-9)


def test_a_branch_without_rows_gets_gradients_of_zero():
    iem = dk.IEM(20, 16, init="xavier")
    q, p = torch.randn(3, 20), torch.randn(3, 20)
    iem(q, p, torch.zeros(3, dtype=torch.int64)).sum().backward()
    assert (iem.proj1.weight.grad == 0).all() and (iem.proj0.weight.grad != 0).any()


def test_modules_run_on_the_meta_device():
    with torch.device("meta"):
        assert dk.PMA(32, 4)(torch.randn(2, 3, 32)).shape == (2, 32)
        assert dk.IEM(32, 16).score_all(torch.randn(2, 32), torch.randn(3, 32), 0).shape == (2, 3)


def test_iem_broadcasts_one_query_against_its_passages():
    iem = dk.IEM(20, 16, init="xavier")
    q, p, task = torch.randn(3, 1, 20), torch.randn(3, 4, 20), torch.tensor([[0], [1], [0]])
    z, features = iem(q, p, task, return_features=True)
    assert z.shape == (3, 4) and features.shape == (3, 4, 16)
    for i in range(3):
        torch.testing.assert_close(z[i], iem.score_all(q[i], p[i], int(task[i]))[0], rtol=1e-5, atol=1e-5)


def test_iem_is_order_sensitive():
    iem = dk.IEM(20, 16, init="xavier")
    q, p = torch.randn(4, 20), torch.randn(4, 20)
    assert not torch.allclose(iem(q, p, 1), iem(p, q, 1))


def test_warm_pma_is_mean_pooling():
    torch.manual_seed(0)
    pma, x = dk.PMA(64, 8), torch.randn(4, 12, 64) + torch.randn(4, 1, 64)
    mask = torch.arange(12) < torch.tensor([12, 5, 1, 9])[:, None]
    mean = (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    expected = torch.nn.functional.layer_norm(mean, (64,))
    assert (pma(x, mask) - expected).abs().max() < 0.1
    pma(x, mask).square().sum().backward()
    trainable = {name for name, p in pma.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert {"S", "mab.fc_v.weight", "mab.fc_o.weight", "mab.fc_q.weight"} <= trainable


def test_warm_iem_ranks_by_distance():
    torch.manual_seed(0)
    iem = dk.IEM(128, 512)
    q = torch.nn.functional.layer_norm(torch.randn(6, 128), (128,))
    steps = torch.linspace(0, 3, 8)
    p = torch.nn.functional.layer_norm(q[:, None] + steps[:, None] * torch.randn(6, 1, 128), (128,))
    for task in (0, 1):
        z = iem(q[:, None], p, task)
        assert (z.diff(dim=1) < 0).all(), "further away must score lower"
        distance = (q[:, None] - p).norm(dim=-1) / 128**0.5
        assert (z - 10 * (1 - distance)).abs().max() < 1.5


@pytest.mark.parametrize("dim, hidden", [(24, 64), (64, 64), (64, 33)])
def test_the_warm_frame_weighs_every_direction_alike_and_needs_one_sign(dim, hidden):
    iem = dk.IEM(dim, hidden)
    r = iem.linear1.weight[:, :dim].detach().double()
    assert torch.equal(iem.linear1.weight[:, dim:], -iem.linear1.weight[:, :dim])
    torch.testing.assert_close(r.sum(0), torch.zeros(dim).double(), rtol=0, atol=1e-3)
    kept = min(dim, hidden - 1)
    expected = torch.zeros(min(dim, hidden)).double()
    expected[:kept] = (hidden / kept) ** 0.5
    torch.testing.assert_close(torch.linalg.svdvals(r), expected, rtol=1e-5, atol=1e-4)


def test_the_warm_frame_keeps_what_a_sample_varies_in():
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(64, 64)).Q
    scales = torch.cat([torch.ones(15), torch.full((49,), 1e-3)])
    sample = torch.randn(200, 64) * scales @ basis.T + 5
    iem = dk.IEM(64, 16)
    iem.reset_parameters("warm", sample=sample)
    r = iem.linear1.weight[:, :64].detach()
    assert (r @ basis[:, 15:]).norm() < 1e-2 * r.norm()
    # Its z means the same as without a sample: 0 at a distance of sqrt(64), 10 at none.
    z, distance = iem(sample[:100], sample[100:], 0), (sample[:100] - sample[100:]).norm(dim=1)
    torch.testing.assert_close(z, 10 * (1 - distance / 8), rtol=0, atol=1.5)
    # Fewer vectors than directions: the others are random, and as many.
    iem.reset_parameters("warm", sample=sample[:4])
    assert torch.linalg.matrix_rank(iem.linear1.weight, atol=1e-3) == 15


def test_a_sample_of_one_text_repeated_changes_no_scale():
    iem = dk.IEM(64, 16)
    iem.reset_parameters("warm", sample=torch.ones(9, 64))
    assert iem.linear2.weight.isfinite().all() and iem.linear1.weight.isfinite().all()


def test_warm_iem_scale_for_unit_vectors():
    torch.manual_seed(0)
    iem = dk.IEM(64, 512)
    iem.reset_parameters("warm", input_norm=1.0)
    q, p = (torch.nn.functional.normalize(torch.randn(50, 64), dim=-1) for _ in range(2))
    assert (iem(q, p, 0) - 10 * (1 - (q - p).norm(dim=-1))).abs().max() < 2.5


@pytest.mark.parametrize(
    "make,name",
    [
        (lambda: dk.PMA(30, 4), "num_heads"),
        (lambda: dk.PMA(32, 4, residual="none"), "residual"),
        (lambda: dk.PMA(32, 4, init="zero"), "init"),
        (lambda: dk.PMA(32, 4, num_seeds=0), "num_seeds"),
        (lambda: dk.IEM(32, 1), "hidden"),
        (lambda: dk.IEM(32, 16).reset_parameters(sample=torch.zeros(3, 31)), "sample"),
        (lambda: dk.IEM(32, 16).reset_parameters(sample=torch.zeros(1, 32)), "sample"),
        (lambda: dk.IEM(32, 16, num_tasks=0), "num_tasks"),
        (lambda: dk.IEM(32, 16)(torch.zeros(2, 32), torch.zeros(2, 32), 2), "task"),
        (lambda: dk.IEM(32, 16)(torch.zeros(2, 32), torch.zeros(2, 32), "asym"), "task"),
        (lambda: dk.IEM(32, 16)(torch.zeros(2, 32), torch.zeros(2, 32), torch.tensor([0, 2])), "task"),
        (lambda: dk.IEM(32, 16)(torch.zeros(2, 32), torch.zeros(2, 32), torch.tensor([0, 1, 1])), "task"),
        (lambda: dk.IEM(32, 16)(torch.zeros(2, 31), torch.zeros(2, 32), 0), "q"),
        (lambda: dk.IEM(32, 16).score_all(torch.zeros(2, 32), torch.zeros(32), 0), "p"),
    ],
)
def test_bad_arguments_are_named(make, name):
    with pytest.raises(dk.ArgumentError, match=f"^{name}: expected"):
        make()


def test_reference_is_reachable():
    assert dk.reference is reference
