"""The calls that are counted: small, fixed, on random numbers that do not matter."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

import d2llm_kernels as dk
from benchmarks.counters.launches import DEVICE
from d2llm_kernels import functional, int8
from d2llm_kernels.backends.folded import interaction, pooling
from d2llm_kernels.branch import Branch

_D, _H, _F = 64, 4, 64


class Counted(NamedTuple):
    """A call of a backend, by name."""

    name: str
    run: Callable[[], object]


def _texts(queries: int, passages: int, hidden: int) -> tuple[Tensor, Tensor, Branch]:
    branch = Branch(torch.randn(hidden, hidden), torch.randn(hidden), torch.randn(1, hidden), torch.randn(1))
    return torch.randn(queries, hidden), torch.randn(passages, hidden), branch


def native() -> Iterator[Counted]:
    """Calls of the C++ kernels, each of some hundred thousand instructions."""
    ops = torch.ops.d2llm_cpu
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        x, u = torch.randn(1, 64, _D).to(dtype), torch.randn(_H, _D).to(dtype)
        pooled, _ = ops.attn_pool(x, u, None, None)
        yield Counted(f"attn_pool {name}", partial(ops.attn_pool, x, u, None, None))
        yield Counted(
            f"attn_pool_backward {name}",
            partial(ops.attn_pool_backward, torch.randn_like(pooled), None, x, u, None, None),
        )
        a, b, branch = _texts(2, 128, _F)
        yield Counted(f"iem_scores {name}", partial(ops.iem_scores, *(tensor.to(dtype) for tensor in (a, b, *branch))))
        # Half as wide: packing weights and adding up their gradients would be most of it.
        a, b, branch = _texts(2, 32, _F // 2)
        texts = [tensor.to(dtype) for tensor in (a, b, *branch)]
        yield Counted(f"iem_scores_backward {name}", partial(ops.iem_scores_backward, torch.randn(2, 32), *texts))
        yield Counted(f"iem_topk {name}", partial(ops.iem_topk, *texts, 4))
    a, b, branch = _texts(2, 32, _F // 2)
    values, scale = int8.quantize(b)
    none = torch.empty(2, 0), torch.empty(2, 0, dtype=torch.int64)
    search = torch.classes.d2llm_cpu.Search(*branch, torch.int8)
    yield Counted("iem_topk int8", partial(search.topk, a, values, scale, 32, *none, 0))
    yield Counted("iem_pairs int8", partial(search.pairs, a, torch.zeros(32, dtype=torch.int64), values, scale))
    whole = torch.randint(-127, 128, (512, 2 * _D), dtype=torch.int8)
    yield Counted("inner_topk int8", partial(ops.inner_topk, whole[:2], list(whole.split(200)), None, 16))
    yield Counted("take_rows int8", partial(ops.take_rows, list(whole.split(200)), torch.arange(0, 512, 2)))
    z, z_hard, s, s_hard = torch.randn(16, 16), torch.randn(16, 4), torch.rand(16, 16), torch.rand(16, 4)
    yield Counted("in_batch_terms float32", partial(ops.in_batch_terms, z, z_hard, s_hard, s, None, 1.0))
    slopes = torch.ones(16), torch.ones(16)
    yield Counted(
        "in_batch_terms_backward float32",
        partial(ops.in_batch_terms_backward, *slopes, z, z_hard, s_hard, s, None, 1.0),
    )


def multiplied() -> Iterator[Counted]:
    """The folded forms, called past their operators, which hide the products inside from whoever counts."""
    x, u = torch.randn(4, 96, _D), torch.randn(_H, _D)
    pooled, _ = pooling.attn_pool(x, u, None, None)
    yield Counted("attn_pool", partial(pooling.attn_pool, x, u, None, None))
    yield Counted(
        "attn_pool_backward",
        partial(pooling.attn_pool_backward, torch.randn_like(pooled), None, x, u, None, None, (True, True)),
    )
    a, b, branch = _texts(16, 256, _F)
    yield Counted("iem_scores", partial(interaction.iem_scores, a, b, branch))
    slopes = torch.randn(16, 256)
    backward = partial(interaction.iem_scores_backward, slopes, a, b, branch, (True, True))
    yield Counted("iem_scores_backward", backward)
    yield Counted("iem_topk", partial(interaction.iem_topk, a, b, branch, 8))


def allocated(backend: str) -> Iterator[Counted]:
    """The public functions, with gradients where they have them."""
    x, u = (torch.randn(shape, requires_grad=True) for shape in ((8, 256, _D), (_H, _D)))
    yield Counted("attn_pool", lambda: functional.attn_pool(x, u, backend=backend)[0].sum().backward())
    a, b, branch = _texts(64, 2048, _F)
    for leaf in (a, b, *branch):
        leaf.requires_grad_()
    yield Counted("iem_scores", lambda: functional.iem_scores(a, b, *branch, backend=backend).sum().backward())
    yield Counted("iem_pairs", lambda: functional.iem_pairs(a, b[:64], *branch, backend=backend).sum().backward())
    with torch.no_grad():
        many = torch.randn(20_000, _F)
        yield Counted("iem_topk", lambda: functional.iem_topk(a[:1], many, *branch, 16, backend=backend))
    z, z_hard = torch.randn(256, 256, requires_grad=True), torch.randn(256, 8, requires_grad=True)
    s, s_hard = torch.rand(256, 256), torch.rand(256, 8)

    def losses() -> None:
        cross_entropy, pairwise = functional.in_batch_terms(z, z_hard, s_hard, s, backend=backend)
        (cross_entropy.sum() + pairwise.sum()).backward()

    yield Counted("in_batch_terms", losses)
    rows, factors = torch.randn(2048, _D, requires_grad=True), (torch.randn(8, _D), torch.randn(_F, 8))
    weight = torch.randn(_F, _D)
    for factor in factors:
        factor.requires_grad_()
    yield Counted(
        "lora_linear",
        lambda: functional.lora_linear(rows, weight, None, *factors, 2.0, backend=backend).sum().backward(),
    )


class Issuing(NamedTuple):
    """A call on tensors without data, by name: it returns what gradients flow back from to ``leaves``."""

    name: str
    leaves: tuple[Tensor, ...]
    run: Callable[[], tuple[Tensor, ...]]


def issuing(backend: str) -> Iterator[Issuing]:
    """The public functions as training and search call them, with one chunk of pairs and with many."""
    pma, iem = dk.PMA(_D, _H, backend=backend).to(DEVICE), dk.IEM(_D, _F, backend=backend).to(DEVICE)
    pooling, scoring = (tuple(p for p in head.parameters() if p.requires_grad) for head in (pma, iem))
    x, mask = _without_data(8, 256, _D), torch.empty(8, 256, dtype=torch.bool, device=DEVICE)
    offsets = torch.empty(9, dtype=torch.int32, device=DEVICE)
    yield Issuing("PMA padded", (x, *pooling), lambda: (pma(x, mask),))
    yield Issuing("PMA packed", (x, *pooling), lambda: (pma(x.flatten(0, 1), cu_seqlens=offsets),))
    u = pma.folded_queries().detach()
    frozen = x.detach()
    yield Issuing("PMA with queries at hand", (), torch.no_grad()(lambda: (pma(frozen, mask, u=u),)))
    yield Issuing("PMA of frozen states", pooling, lambda: (pma(frozen, mask),))
    for size in (32, 4096):
        texts = _without_data(size, _D), _without_data(size, _D)
        yield Issuing(
            f"IEM.score_all {size}", (*texts, *scoring), partial(lambda q, p: (iem.score_all(q, p, 1),), *texts)
        )
    q, p = _without_data(32, _D), _without_data(32, _D)
    tasks = torch.empty(32, dtype=torch.int64, device=DEVICE)
    yield Issuing(
        "IEM.score_all 32 of two tasks", (q, p, *scoring), partial(lambda q, p: (iem.score_all(q, p, tasks),), q, p)
    )
    q, group = _without_data(32, 1, _D), _without_data(32, 9, _D)
    yield Issuing("IEM pairs", (q, group, *scoring), lambda: (iem(q, group, 1),))
    yield Issuing("IEM pairs with features", (q, group, *scoring), lambda: iem(q, group, 1, return_features=True))
    a, b = _without_data(1, _F).detach(), _without_data(1_000_000, _F).detach()
    yield Issuing("IEM.topk", (), lambda: iem.topk(a, b, 100, 1))
    z, z_hard = _without_data(256, 256), _without_data(256, 8)
    s, s_hard = z.detach(), z_hard.detach()
    yield Issuing(
        "in_batch_terms", (z, z_hard), lambda: functional.in_batch_terms(z, z_hard, s_hard, s, backend=backend)
    )
    rows, factors = _without_data(2048, _D), (_without_data(8, _D), _without_data(_F, 8))
    weight = _without_data(_F, _D).detach()
    yield Issuing(
        "lora_linear",
        (rows, *factors),
        lambda: (functional.lora_linear(rows, weight, None, *factors, 2.0, backend=backend),),
    )


def _without_data(*shape: int) -> Tensor:
    return torch.empty(shape, device=DEVICE, requires_grad=True)
