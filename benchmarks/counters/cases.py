"""The calls that are counted: small, fixed, on random numbers that do not matter."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from d2llm_kernels import functional, iem_folded, int8, pool_folded
from d2llm_kernels.iem_folded import Branch

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
    yield Counted("iem_topk int8", partial(ops.iem_topk_int8, a, *int8.quantize(b), *branch, 4, 32))
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
    pooled, _ = pool_folded.attn_pool(x, u, None, None)
    yield Counted("attn_pool", partial(pool_folded.attn_pool, x, u, None, None))
    yield Counted(
        "attn_pool_backward",
        partial(pool_folded.attn_pool_backward, torch.randn_like(pooled), None, x, u, None, None),
    )
    a, b, branch = _texts(16, 256, _F)
    yield Counted("iem_scores", partial(iem_folded.iem_scores, a, b, branch))
    slopes = torch.randn(16, 256)
    backward = partial(iem_folded.iem_scores_backward, slopes, a, b, branch, (True, True))
    yield Counted("iem_scores_backward", backward)
    yield Counted("iem_topk", partial(iem_folded.iem_topk, a, b, branch, 8))


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
