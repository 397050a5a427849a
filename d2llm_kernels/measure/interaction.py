"""Rows of the interaction scores. The literal form is the IEM module on pairs of concatenated vectors.

It is timed on as many of the pairs as its tensors of the size (pairs, 2D) fit, and its time is scaled up by the share.
"""

import math
from collections.abc import Callable
from functools import cache, partial

import torch

import d2llm_kernels as dk
from d2llm_kernels.measure.case import Call, Case, Prepared, Target, Wrap
from d2llm_kernels.measure.contract import Verdict, distance, judge, worst
from d2llm_kernels.measure.passes import NAMES, differentiated, gradients_of
from d2llm_kernels.measure.problems import BytesTopK, Interaction, TopK
from d2llm_kernels.rough.linear import Int8Linear

#: Nq, Np (or the number of pairs), F, and the width D of the literal form's vectors.
Sizes = tuple[int, int, int, int]

#: The same scores with the square layer in e4m3.
FP8 = "fp8"
_TASKS = 2
# Bytes of the concatenated pairs that the literal form is given: enough to fill the device.
_LITERAL_BYTES = {"cpu": 1 << 28, "cuda": 1 << 30}
# Pairs that the literal top k is given.
_LITERAL_PAIRS = 1 << 17
# Queries, and rows of passages, that a module is checked on.
_CHECKED = 16
# Products of F x F with a row for each pair: one forward; backward the same once more, and two for the gradients.
_PRODUCTS = {"f": 1, "b": 3, "fb": 4}


def scores(
    passes: str,
    dtype: torch.dtype,
    queries: int,
    passages: int,
    hidden: int,
    width: int,
    priority: int = 1,
    target: Target | None = None,
    compiled: bool = False,
) -> Case:
    """A row of ``iem_scores``: every query with every passage.

    Args:
        passes: "f" forward, "b" backward alone, "fb" both.
        queries, passages, hidden: Nq, Np and F. width: D of the literal form's vectors.
        dtype, priority, target, compiled: see :class:`Case`.
    """

    def prepare(device: torch.device) -> Prepared:
        problem = Interaction(device, dtype, queries, passages, hidden)
        ordinary = _check(problem, passes)
        pairs, item = queries * passages, problem.tensors[0].element_size()
        # Projected texts, and scores (or their gradients) in float32; their gradients once more in training.
        once = item * (queries + passages) * hidden + 4 * pairs
        traffic = once * {"f": 1, "b": 2, "fb": 3}[passes]

        def literal(wrap: Wrap) -> Call:
            some = max(1, _LITERAL_BYTES[device.type] // (2 * width * item))
            tall = min(queries, max(1, math.isqrt(some)))
            wide = min(passages, max(1, some // tall))
            module = dk.IEM(width, hidden, init="xavier", backend="reference").to(device, dtype)
            q, p = (torch.randn(size, width, device=device, dtype=dtype) for size in (tall, wide))
            share = tall * wide / pairs
            return Call(
                differentiated(wrap(lambda: module.score_all(q, p, 1)), [q, p, *module.parameters()], passes), share
            )

        return Prepared(
            _PRODUCTS[passes] * pairs * (2 * hidden**2 + 4 * hidden),
            traffic,
            _kernel(problem, passes),
            literal,
            lambda name: problem.check_fp8() if name == FP8 else ordinary(name),
            literal_bytes(pairs, width, hidden, item),
            # For those who ask: without its kernel it is slower than all else.
            peers={FP8: lambda: Call(problem.in_fp8)},
        )

    shape = f"{queries} x {passages} F={hidden} (literal: D={width})"
    name = f"iem_scores {NAMES[passes]}"
    return Case(name, shape, dtype, priority, prepare, target or Target(), compiled)


def pairs(passes: str, dtype: torch.dtype, count: int, hidden: int, width: int, priority: int = 2) -> Case:
    """A row of ``iem_pairs`` with features, "f" or "fb"; arguments are those of :func:`scores`."""

    def prepare(device: torch.device) -> Prepared:
        problem = Interaction(device, dtype, count, count, hidden, paired=True, features=True)
        item = problem.tensors[0].element_size()
        traffic = (item * 3 * count * hidden + 4 * count) * {"f": 1, "fb": 3}[passes]

        def literal(wrap: Wrap) -> Call:
            some = min(count, max(1, _LITERAL_BYTES[device.type] // (2 * width * item)))
            module = dk.IEM(width, hidden, init="xavier", backend="reference").to(device, dtype)
            q, p = (torch.randn(some, width, device=device, dtype=dtype) for _ in range(2))
            forward = wrap(lambda: module(q, p, 1, return_features=True))
            return Call(differentiated(forward, [q, p, *module.parameters()], passes), some / count)

        return Prepared(
            _PRODUCTS[passes] * count * (2 * hidden**2 + 4 * hidden),
            traffic,
            _kernel(problem, passes),
            literal,
            _check(problem, passes),
            literal_bytes(count, width, hidden, item),
        )

    shape = f"{count} pairs F={hidden} (literal: D={width})"
    return Case(f"iem_pairs with features {NAMES[passes]}", shape, dtype, priority, prepare)


def topk(
    dtype: torch.dtype,
    queries: int,
    passages: int,
    hidden: int,
    k: int,
    priority: int = 1,
    target: Target | None = None,
    peers: tuple[str, ...] = (),
    backends: tuple[str, ...] | None = None,
) -> Case:
    """A row of ``iem_topk``; the literal form sorts the reference's scores of projected texts, made block by block.

    Args:
        queries, passages, hidden, k: Nq, Np, F and k.
        dtype: that of the texts; ``torch.int8`` stores passages so, and queries are float32.
        peers: "iem_scores", all scores on the fastest backend without a sort; for int8 "bfloat16", the same top k.
        priority, target, backends: see :class:`Case`.
    """

    def prepare(device: torch.device) -> Prepared:
        problem = (BytesTopK if dtype == torch.int8 else TopK)(device, dtype, queries, passages, hidden, k)
        pairs, item = queries * passages, torch.empty(0, dtype=dtype).element_size()
        # Every passage against every query is more than the literal form has time for; it is given a share.
        some = min(passages, max(k, _LITERAL_PAIRS // queries))

        def literal(wrap: Wrap) -> Call:
            texts = problem.literal_texts(some)
            block = max(1, _LITERAL_BYTES[device.type] // (4 * queries * hidden * texts.a.element_size()))

            def run() -> object:
                parts = [dk.reference.iem_scores(texts.a, part, *texts.branch) for part in texts.b.split(block)]
                return dk.reference.topk(torch.cat(parts, 1), k)

            return Call(differentiated(wrap(run), [], "f"), some / passages)

        return Prepared(
            pairs * (2 * hidden**2 + 4 * hidden),
            item * passages * hidden + 4 * queries * hidden + 12 * queries * k,
            lambda backend: Call(lambda: problem.forward(backend)),
            literal,
            problem.check,
            4 * pairs * 2 * hidden + 4 * pairs,
            peers={name: partial(Call, partial(problem.peer, name)) for name in peers},
            items=("pairs", pairs),
        )

    shape = f"{queries} x {passages} F={hidden} k={k}"
    return Case("iem_topk", shape, dtype, priority, prepare, target or Target(), peers=peers, backends=backends)


def score_all(queries: int, passages: int, hidden: int, width: int, compiled: bool = False) -> Case:
    """A row of ``IEM.score_all`` in float32, projections included; arguments are those of :func:`scores`."""
    shape = f"{queries} x {passages} F={hidden} D={width}"
    shapes = (queries, width), (passages, width)
    return _module(
        "IEM.score_all", shape, hidden, shapes, queries * passages, lambda m, q, p: m.score_all(q, p, 1), compiled
    )


def groups(queries: int, group: int, hidden: int, width: int) -> Case:
    """A row of ``IEM`` in float32 on passages of each query's own, as hard negatives come, projections included.

    Args:
        queries, group: Nq and the passages of each. hidden, width: F and D.
    """
    shape = f"{queries} queries x {group} passages each, F={hidden} D={width}"
    shapes = (queries, 1, width), (queries, group, width)
    return _module("IEM groups", shape, hidden, shapes, queries * group, lambda m, q, p: m(q, p, 1))


def _module(
    operation: str,
    shape: str,
    hidden: int,
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
    count: int,
    score: Callable[[dk.IEM, torch.Tensor, torch.Tensor], torch.Tensor],
    compiled: bool = False,
) -> Case:
    width = shapes[0][-1]

    def prepare(device: torch.device) -> Prepared:
        literal = dk.IEM(width, hidden, init="xavier", backend="reference").to(device)
        q, p = (torch.randn(shape, device=device) for shape in shapes)
        texts = (q.numel() + p.numel()) // width

        def copy(backend: str, dtype: torch.dtype = torch.float32) -> dk.IEM:
            made = dk.IEM(width, hidden, init="xavier", backend=backend).to(device, dtype)
            made.load_state_dict(literal.state_dict())
            return made

        def kernel(backend: str) -> Call:
            made = copy(backend)
            return Call(differentiated(lambda: score(made, q, p), [], "f"))

        @torch.no_grad()
        def check(backend: str) -> Verdict:
            some = q[:_CHECKED], p[:_CHECKED]
            exact = score(copy("reference", torch.float64), *(part.double() for part in some))
            got, same = (score(module, *some) for module in (copy(backend), literal))
            return judge([got], [same], [exact], torch.float32, terms=max(width, hidden))

        return Prepared(
            count * (2 * hidden**2 + 4 * hidden) + 2 * texts * width * hidden,
            4 * (texts * width + count + 2 * width * hidden),
            kernel,
            lambda wrap: Call(differentiated(wrap(lambda: score(literal, q, p)), [], "f")),
            check,
            literal_bytes(count, width, hidden, 4),
            items=("pairs", count),
        )

    return Case(operation, shape, torch.float32, 2, prepare, compiled=compiled)


def linear(rows: int, depth: int, outputs: int) -> Case:
    """A row of ``functional.linear`` in float32, a projection of PMA or IEM; the literal form is torch's own."""

    def prepare(device: torch.device) -> Prepared:
        x, weight, bias = (
            torch.randn(*shape, device=device) for shape in ((rows, depth), (outputs, depth), (outputs,))
        )

        def check(backend: str) -> Verdict:
            exact = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
            got, same = (dk.functional.linear(x, weight, bias, name) for name in (backend, "reference"))
            return judge([got], [same], [exact], x.dtype, terms=depth)

        return Prepared(
            2 * rows * depth * outputs,
            4 * (rows * depth + outputs * depth + rows * outputs),
            lambda backend: Call(lambda: dk.functional.linear(x, weight, bias, backend)),
            lambda wrap: Call(wrap(lambda: torch.nn.functional.linear(x, weight, bias))),
            check,
        )

    shape = f"{rows} x {depth} -> {outputs}"
    return Case("linear", shape, torch.float32, 3, prepare, backends=("cpu",))


def linear_int8(rows: int, depth: int, outputs: int) -> Case:
    """A row of ``rough.linear.Int8Linear``, a layer of an LLM; the literal form is torch's own layer in float32."""

    def prepare(device: torch.device) -> Prepared:
        layer = torch.nn.Linear(depth, outputs, device=device).requires_grad_(False)
        x = torch.randn(rows, depth, device=device)
        made = cache(partial(Int8Linear, layer))
        return Prepared(
            2 * rows * depth * outputs,
            4 * (rows * depth + rows * outputs) + outputs * depth,
            lambda backend: Call(partial(made(backend), x)),
            lambda wrap: Call(wrap(lambda: layer(x))),
            # Whole numbers: every backend gives the same.
            lambda backend: Verdict(distance(made(backend)(x), made("folded")(x)), 0.0),
        )

    return Case("Int8Linear", f"{rows} x {depth} -> {outputs}", torch.int8, 3, prepare, backends=("folded", "cpu"))


def literal_bytes(pairs: int, width: int, hidden: int, item: int) -> int:
    """What the literal form holds of all pairs at once, at least: concatenated vectors, x, the branches, x_t."""
    return item * pairs * (2 * width + (2 + _TASKS) * hidden)


def _kernel(problem: Interaction, passes: str) -> Callable[[str], Call]:
    slopes = problem.slopes() if "b" in passes else ()

    def kernel(backend: str) -> Call:
        if passes == "f":
            return Call(lambda: problem.forward(backend))
        if passes == "b":
            return Call(lambda: problem.backward(backend, slopes))
        return Call(lambda: (problem.forward(backend), problem.backward(backend, slopes)))

    return kernel


def _check(problem: Interaction, passes: str) -> Callable[[str], Verdict]:
    def check(backend: str) -> Verdict:
        return worst(problem.check(backend, gradients) for gradients in gradients_of(passes))

    return check
