"""Rows of attention pooling. The literal form is the PMA module with keys and values built for every token."""

from collections.abc import Iterator

import torch

import d2llm_kernels as dk
from benchmarks.gpu_report.case import Call, Case, Prepared, Target, Wrap
from benchmarks.gpu_report.passes import NAMES, differentiated, gradients_of
from benchmarks.gpu_report.problems import Pool, Verdict, judge

_BF16, _FP32 = torch.bfloat16, torch.float32
# The batch of the targets, and the widths of a small, a middling and a large decoder.
_MAIN = (64, 256, 4096, 32)


def cases(smoke: bool) -> Iterator[Case]:
    """The rows, or a tiny one of each sort."""
    if smoke:
        sizes = (2, 9, 16, 2)
        for kind in ("whole", "masked", "packed"):
            yield from _operations(1, _FP32, sizes, kind, targets=kind == "whole")
        yield _module(1, _FP32, sizes)
        return
    yield from _operations(1, _BF16, _MAIN, "whole", targets=True)
    yield _module(2, _BF16, _MAIN)
    for priority, dtype, sizes, kind in (
        (2, _BF16, _MAIN, "packed"),
        (3, _BF16, _MAIN, "masked"),
        (3, _BF16, (64, 256, 1024, 16), "packed"),
        (3, _BF16, (64, 256, 576, 9), "packed"),
        (3, _FP32, _MAIN, "whole"),
        (4, _FP32, (64, 256, 576, 9), "packed"),
        (4, torch.float16, _MAIN, "whole"),
        (5, _BF16, (256, 512, 1024, 16), "whole"),
    ):
        yield from _operations(priority, dtype, sizes, kind)


def _operations(
    priority: int, dtype: torch.dtype, sizes: tuple[int, int, int, int], kind: str, targets: bool = False
) -> Iterator[Case]:
    batch, length, width, heads = sizes
    shape = f"B={batch} L={length} D={width} H={heads} {kind}"

    def case(passes: str, target: Target, compiled: bool) -> Case:
        def prepare(device: torch.device) -> Prepared:
            return _prepare(Pool(device, dtype, batch, length, width, heads, kind), passes)

        return Case(f"attn_pool {NAMES[passes]}", shape, dtype, priority, prepare, target, compiled)

    yield case("f", Target(ratio=20, percent=60) if targets else Target(), targets)
    yield case("b", Target(ratio=12, percent=50) if targets else Target(), False)
    if targets:
        yield case("fb", Target(), True)


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
        verdicts = [pool.check(backend, gradients) for gradients in gradients_of(passes)]
        return next((v for v in verdicts if not v.passed), verdicts[-1])

    # Keys and values of every token; in training they stay, with the gradients of both beside them.
    held = item * pool.x.numel() * (2 if passes == "f" else 4)
    return Prepared(work, traffic, kernel, call_literal, check, held)


def _module(priority: int, dtype: torch.dtype, sizes: tuple[int, int, int, int]) -> Case:
    """The whole module, head included, forward and backward to x and all parameters."""
    batch, length, width, heads = sizes

    def prepare(device: torch.device) -> Prepared:
        literal = dk.PMA(width, heads, init="xavier", backend="reference").to(device, dtype)
        x = torch.randn(batch, length, width, device=device, dtype=dtype, requires_grad=True)
        tokens, item = batch * length, x.element_size()

        def module(backend: str) -> dk.PMA:
            made = dk.PMA(width, heads, init="xavier", backend=backend).to(device, dtype)
            made.load_state_dict(literal.state_dict())
            return made

        def kernel(backend: str) -> Call:
            made = module(backend)
            return Call(differentiated(lambda: made(x), [x, *_trained(made)], "fb"))

        def call_literal(wrap: Wrap) -> Call:
            return Call(differentiated(wrap(lambda: literal(x)), [x, *_trained(literal)], "fb"))

        def check(backend: str) -> Verdict:
            exact = dk.PMA(width, heads, init="xavier", backend="reference").to(device, torch.float64)
            exact.load_state_dict(literal.state_dict())
            some = x.detach()[:4]
            with torch.no_grad():
                return judge([module(backend)(some)], [literal(some)], [exact(some.double())], dtype)

        # Folding u and dU, values and fc_o with their gradients: products of D x D with one row a sequence.
        tail = 3 * 2 * (2 * batch + 4) * width**2
        weights = 4 * width**2
        traffic = item * (3 * tokens * width + 2 * batch * heads * width + 2 * weights)
        held = item * tokens * width * 4
        return Prepared(14 * tokens * width * heads + tail, traffic, kernel, call_literal, check, held)

    shape = f"B={batch} L={length} D={width} H={heads} whole"
    return Case("PMA module forward+backward", shape, dtype, priority, prepare, compiled=priority == 2)


def _trained(module: torch.nn.Module) -> list[torch.Tensor]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]
