"""Rows of the interaction scores. The literal form is the IEM module on pairs of concatenated vectors.

It is timed on as many of the pairs as its tensors of the size (pairs, 2D) fit, and its time is scaled up by the share.
"""

import math
from collections.abc import Callable, Iterator

import torch

import d2llm_kernels as dk
from benchmarks.gpu_report.case import Call, Case, Prepared, Target, Wrap
from benchmarks.gpu_report.passes import NAMES, differentiated, gradients_of
from benchmarks.gpu_report.problems import Interaction, TopK, Verdict

_BF16, _FP32 = torch.bfloat16, torch.float32
_TASKS = 2
# Bytes of the concatenated pairs that the literal form is given.
_LITERAL_BYTES = 1 << 30


def cases(smoke: bool) -> Iterator[Case]:
    """The rows, or a tiny one of each sort."""
    if smoke:
        yield _scores(1, _FP32, 3, 40, 16, 24, "f", Target(ratio=10, percent=55), compiled=True)
        yield _scores(1, _FP32, 4, 20, 16, 24, "fb", Target(ratio=8))
        yield _pairs(1, _FP32, 20, 16, 24, "f")
        yield _pairs(1, _FP32, 20, 16, 24, "fb")
        yield _topk(1, _FP32, 2, 60, 16, 5, Target(milliseconds=2.5))
        return
    yield _scores(1, _BF16, 4096, 65536, 512, 4096, "f", Target(ratio=10, percent=55), compiled=True)
    yield _scores(1, _BF16, 4096, 4096, 512, 4096, "fb", Target(ratio=8), compiled=True)
    yield _topk(1, _BF16, 1, 1_000_000, 512, 100, Target(milliseconds=2.5))
    yield _scores(2, _BF16, 8192, 8192, 512, 4096, "fb", Target())
    yield _topk(2, _BF16, 64, 1_000_000, 512, 100, Target())
    yield _pairs(2, _BF16, 65536, 512, 4096, "f")
    yield _pairs(2, _BF16, 65536, 512, 4096, "fb")
    yield _scores(3, _BF16, 4096, 4096, 512, 4096, "b", Target())
    yield _scores(3, _FP32, 1024, 16384, 512, 1024, "f", Target())
    yield _scores(4, _FP32, 2048, 2048, 512, 1024, "fb", Target())
    yield _scores(4, _BF16, 4096, 16384, 256, 1024, "f", Target())
    yield _scores(4, _BF16, 4096, 16384, 1024, 4096, "f", Target())
    yield _scores(5, torch.float16, 4096, 16384, 512, 4096, "f", Target())


# Products of F x F with a row for each pair: one forward; backward the same once more, and two for the gradients.
_PRODUCTS = {"f": 1, "b": 3, "fb": 4}


def _scores(
    priority: int,
    dtype: torch.dtype,
    queries: int,
    passages: int,
    hidden: int,
    width: int,
    passes: str,
    target: Target,
    compiled: bool = False,
) -> Case:
    def prepare(device: torch.device) -> Prepared:
        problem = Interaction(device, dtype, queries, passages, hidden)
        pairs, item = queries * passages, problem.tensors[0].element_size()
        # Projected texts, and scores (or their gradients) in float32; their gradients once more in training.
        once = item * (queries + passages) * hidden + 4 * pairs
        traffic = once * {"f": 1, "b": 2, "fb": 3}[passes]

        def literal(wrap: Wrap) -> Call:
            some = max(1, _LITERAL_BYTES // (2 * width * item))
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
            _check(problem, passes),
            literal_bytes(pairs, width, hidden, item),
        )

    shape = f"{queries} x {passages} F={hidden} (literal: D={width})"
    return Case(f"iem_scores {NAMES[passes]}", shape, dtype, priority, prepare, target, compiled)


def _pairs(priority: int, dtype: torch.dtype, count: int, hidden: int, width: int, passes: str) -> Case:
    def prepare(device: torch.device) -> Prepared:
        problem = Interaction(device, dtype, count, count, hidden, paired=True, features=True)
        item = problem.tensors[0].element_size()
        traffic = (item * 3 * count * hidden + 4 * count) * {"f": 1, "fb": 3}[passes]

        def literal(wrap: Wrap) -> Call:
            some = min(count, max(1, _LITERAL_BYTES // (2 * width * item)))
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


def _topk(priority: int, dtype: torch.dtype, queries: int, passages: int, hidden: int, k: int, target: Target) -> Case:
    """Against the reference's scores of projected texts, block by block, and one sort: it holds no pair of vectors."""

    def prepare(device: torch.device) -> Prepared:
        problem = TopK(device, dtype, queries, passages, hidden, k)
        a, b, *weights = problem.problem.tensors
        pairs, item = queries * passages, a.element_size()

        def literal(wrap: Wrap) -> Call:
            block = max(1, _LITERAL_BYTES // (4 * queries * hidden * item))

            def run() -> object:
                parts = [dk.reference.iem_scores(a, part, *weights) for part in b.split(block)]
                return dk.reference.topk(torch.cat(parts, 1), k)

            return Call(differentiated(wrap(run), [], "f"))

        return Prepared(
            pairs * (2 * hidden**2 + 4 * hidden),
            item * (queries + passages) * hidden + 12 * queries * k,
            lambda backend: Call(lambda: problem.forward(backend)),
            literal,
            problem.check,
            item * pairs * 2 * hidden + 4 * pairs,
        )

    return Case("iem_topk", f"{queries} x {passages} F={hidden} k={k}", dtype, priority, prepare, target)


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
        verdicts = [problem.check(backend, gradients) for gradients in gradients_of(passes)]
        return next((verdict for verdict in verdicts if not verdict.passed), verdicts[-1])

    return check
