"""Rows of attention pooling. The literal form is the PMA module with keys and values built for every token."""

import torch

import d2llm_kernels as dk
from d2llm_kernels.measure.case import Call, Case, Prepared, Target, Wrap
from d2llm_kernels.measure.contract import Verdict, judge, worst
from d2llm_kernels.measure.passes import NAMES, differentiated, gradients_of
from d2llm_kernels.measure.problems import Pool

#: B, L, D and H.
Sizes = tuple[int, int, int, int]


def pooling(
    passes: str,
    dtype: torch.dtype,
    sizes: Sizes,
    kind: str = "whole",
    priority: int = 1,
    target: Target | None = None,
    compiled: bool = False,
    literal: bool = True,
) -> Case:
    """A row of ``attn_pool``.

    Args:
        passes: "f" forward, "b" backward alone, "fb" both.
        sizes: B, L, D and H.
        kind: "whole" (no padding), "masked" (right-padded, ragged) or "packed" (ragged).
        dtype, priority, target, compiled, literal: see :class:`Case`.
    """

    def prepare(device: torch.device) -> Prepared:
        return _prepare(Pool(device, dtype, *sizes, kind), passes)

    name, shape = f"attn_pool {NAMES[passes]}", _shape(sizes, kind)
    return Case(name, shape, dtype, priority, prepare, target or Target(), compiled, literal)


def pma(
    passes: str,
    dtype: torch.dtype,
    sizes: Sizes,
    priority: int = 2,
    target: Target | None = None,
    compiled: bool = False,
) -> Case:
    """A row of the whole PMA module, head included; backward goes to x and all parameters.

    Arguments are those of :func:`pooling`; the batch has no padding.
    """
    batch, length, width, heads = sizes

    def prepare(device: torch.device) -> Prepared:
        literal = dk.PMA(width, heads, init="xavier", backend="reference").to(device, dtype)
        x = torch.randn(batch, length, width, device=device, dtype=dtype, requires_grad="b" in passes)
        tokens, item = batch * length, x.element_size()

        def module(backend: str) -> dk.PMA:
            made = dk.PMA(width, heads, init="xavier", backend=backend).to(device, dtype)
            made.load_state_dict(literal.state_dict())
            return made

        def kernel(backend: str) -> Call:
            made = module(backend)
            return Call(differentiated(lambda: made(x), [x, *_trained(made)], passes))

        def call_literal(wrap: Wrap) -> Call:
            return Call(differentiated(wrap(lambda: literal(x)), [x, *_trained(literal)], passes))

        def check(backend: str) -> Verdict:
            exact = dk.PMA(width, heads, init="xavier", backend="reference").to(device, torch.float64)
            exact.load_state_dict(literal.state_dict())
            some = x.detach()[:4]
            with torch.no_grad():
                return judge([module(backend)(some)], [literal(some)], [exact(some.double())], dtype, terms=width)

        # Folding u, values and fc_o: products of D x D with a row a sequence, two for u; their gradients are two each.
        tail = 2 * (2 * batch + 2) * width**2 * (3 if "b" in passes else 1)
        work = {"f": 4, "b": 10, "fb": 14}[passes] * tokens * width * heads + tail
        # The four weights are read; in training their gradients are written and they are read once more.
        weights = 4 * width**2
        state = batch * heads * width
        reads = {"f": tokens * width + state + weights, "fb": 3 * tokens * width + 2 * state + 3 * weights}
        return Prepared(
            work, item * reads[passes], kernel, call_literal, check, item * tokens * width * (2 if passes == "f" else 4)
        )

    name, shape = f"PMA module {NAMES[passes]}", _shape(sizes, "whole")
    return Case(name, shape, dtype, priority, prepare, target or Target(), compiled)


def _shape(sizes: Sizes, kind: str) -> str:
    batch, length, width, heads = sizes
    return f"B={batch} L={length} D={width} H={heads} {kind}"


def _prepare(pool: Pool, passes: str) -> Prepared:
    device, width, heads = pool.x.device, pool.x.shape[-1], pool.u.shape[0]
    literal = dk.PMA(width, heads, init="xavier", backend="reference").to(device, pool.dtype)
    item, tokens, batch = pool.x.element_size(), pool.tokens, len(pool.lengths)
    state = batch * heads * width
    work = {"f": 4, "b": 10, "fb": 14}[passes] * tokens * width * heads
    # Forward: x in, pooled out. Backward: x and the gradient of pooled in, dx out, for padded rows too.
    forward, backward = tokens * width + state, tokens * width + state + pool.x.numel()
    traffic = item * {"f": forward, "b": backward, "fb": forward + backward}[passes]

    def kernel(backend: str) -> Call:
        if passes == "f":
            return Call(lambda: pool.forward(backend))
        if passes == "b":
            return Call(lambda: pool.backward(backend))
        return Call(lambda: (pool.forward(backend), pool.backward(backend)))

    def call_literal(wrap: Wrap) -> Call:
        x = pool.x.detach().clone()
        forward = wrap(lambda: literal(x, pool.mask, pool.cu_seqlens))
        return Call(differentiated(forward, [x, *_trained(literal)], passes))

    def check(backend: str) -> Verdict:
        return worst(pool.check(backend, gradients) for gradients in gradients_of(passes))

    # Keys and values of every token; in training they stay, with the gradients of both beside them.
    held = item * pool.x.numel() * (2 if passes == "f" else 4)
    return Prepared(work, traffic, kernel, call_literal, check, held)


def _trained(module: torch.nn.Module) -> list[torch.Tensor]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]
