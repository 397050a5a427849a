"""The module IEM: parity with the literal formula, tasks, whole graphs, warm start."""

import pytest
import torch

import d2llm_kernels as dk
from d2llm_kernels import reference
from tests.contract import run
from tests.kernels.cases import twins


@pytest.mark.parametrize("task", (0, 1, torch.tensor([0, 1, 1, 0, 1]), torch.tensor([1, 1, 1, 1, 1])))
def test_it_equals_the_literal_formula(task):
    folded, literal = twins(lambda backend: dk.IEM(20, 16, backend=backend, init="xavier"))
    q, p = torch.randn(5, 20, dtype=torch.float64), torch.randn(5, 20, dtype=torch.float64)
    passages = torch.randn(9, 20, dtype=torch.float64)

    def everything(iem, q, p):
        return (*iem(q, p, task, return_features=True), iem.score_all(q, passages, task))

    one, two = (run(lambda q, p, m=m: everything(m, q, p), (q, p)) for m in (folded, literal))
    for got, expected in zip((*one[0], *one[1]), (*two[0], *two[1]), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def test_weights_learn_the_same():
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


def test_it_broadcasts_one_query_against_its_passages():
    iem = dk.IEM(20, 16, init="xavier")
    q, p, task = torch.randn(3, 1, 20), torch.randn(3, 4, 20), torch.tensor([[0], [1], [0]])
    z, features = iem(q, p, task, return_features=True)
    assert z.shape == (3, 4) and features.shape == (3, 4, 16)
    for i in range(3):
        torch.testing.assert_close(z[i], iem.score_all(q[i], p[i], int(task[i]))[0], rtol=1e-5, atol=1e-5)


def test_it_is_order_sensitive():
    iem = dk.IEM(20, 16, init="xavier")
    q, p = torch.randn(4, 20), torch.randn(4, 20)
    assert not torch.allclose(iem(q, p, 1), iem(p, q, 1))


def test_topk_with_a_task_for_each_query():
    iem = dk.IEM(16, 8, init="xavier")
    q, p, task = torch.randn(5, 16), torch.randn(30, 16), torch.tensor([1, 0, 1, 1, 0])
    with torch.no_grad():
        values, indices = iem.topk(iem.project_queries(q), iem.project_passages(p), 4, task)
        expected = reference.topk(iem.score_all(q, p, task), 4)
    torch.testing.assert_close(values, expected[0])
    assert torch.equal(indices, expected[1])


def test_nothing_of_a_device_tensor_is_read_from_the_host():
    """A tensor of the meta device has no values: to read one raises."""
    with torch.device("meta"):
        iem = dk.IEM(32, 16)
        q, p, task = torch.randn(4, 32), torch.randn(6, 32), torch.zeros(4, dtype=torch.int64)
        z, features = iem(q, p[:4], task, return_features=True)
        (z.sum() + features.sum() + iem.score_all(q, p, task).sum()).backward()
        iem.topk(iem.project_queries(q), iem.project_passages(p), 2, task)


@pytest.mark.parametrize("backend", ("auto", pytest.param("reference", marks=pytest.mark.rest)))
def test_compiles_without_graph_breaks_for_any_size(backend):
    torch.manual_seed(0)
    iem = dk.IEM(16, 8, init="xavier", backend=backend)

    def step(q, p, task):
        z, features = iem(q[:, None], p.view(len(q), -1, 16), task[:, None], return_features=True)
        return z.sum() + features.square().sum() + iem.score_all(q, p, task).logsumexp(1).sum()

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for queries in (3, 4, 7):
        q, p = torch.randn(queries, 16, requires_grad=True), torch.randn(queries * 5, 16)
        task = torch.arange(queries) % 2
        wanted = (q, *iem.parameters())
        expected = torch.autograd.grad(step(q, p, task), wanted)
        got = torch.autograd.grad(compiled(q, p, task), wanted)
        for one, two in zip(got, expected, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


def test_when_warm_it_ranks_by_distance():
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


def test_warm_scale_for_unit_vectors():
    torch.manual_seed(0)
    iem = dk.IEM(64, 512)
    iem.reset_parameters("warm", input_norm=1.0)
    q, p = (torch.nn.functional.normalize(torch.randn(50, 64), dim=-1) for _ in range(2))
    assert (iem(q, p, 0) - 10 * (1 - (q - p).norm(dim=-1))).abs().max() < 2.5
