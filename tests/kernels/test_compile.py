"""torch.compile without graph breaks, for lengths that change from call to call."""

import torch

import d2llm_kernels as dk


def test_compiles_without_graph_breaks_for_any_length():
    torch.manual_seed(0)
    pma, iem = dk.PMA(16, 4, init="xavier"), dk.IEM(16, 8, init="xavier")

    def step(x, mask, task):
        y = pma(x, mask)
        z, features = iem(y, y.flip(0), task, return_features=True)
        return z.sum() + features.square().sum() + iem.score_all(y, y, 1).logsumexp(1).sum()

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch, length in ((3, 5), (4, 9), (6, 17)):
        task, mask = torch.arange(batch) % 2, torch.rand(batch, length) < 0.9
        x = torch.randn(batch, length, 16, requires_grad=True)
        (expected,) = torch.autograd.grad(step(x, mask, task), x)
        (got,) = torch.autograd.grad(compiled(x, mask, task), x)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_packed_batches_and_topk_compile():
    pma, iem = dk.PMA(16, 4), dk.IEM(16, 8)

    @torch.no_grad()
    def search(x, cu):
        y = pma(x, cu_seqlens=cu)
        return iem.topk(iem.project_queries(y), iem.project_passages(y), 2, 1)

    compiled = torch.compile(search, fullgraph=True, dynamic=True, backend="aot_eager")
    for lengths in ((3, 4, 5), (1, 7, 2, 9)):
        cu = torch.tensor([0, *lengths]).cumsum(0)
        x = torch.randn(sum(lengths), 16)
        for got, expected in zip(compiled(x, cu), search(x, cu), strict=True):
            torch.testing.assert_close(got, expected)
