"""The interaction module: all pairs, given pairs, groups, the best k, and the projections before it."""

from collections.abc import Iterator

import torch

from d2llm_kernels.measure.case import Case
from d2llm_kernels.measure.interaction import groups, linear, linear_int8, pairs, score_all, scores, topk

_DTYPES = (torch.float32, torch.bfloat16)
_F, _D = 512, 1024
_K = 100


def cases(full: bool) -> Iterator[Case]:
    """The rows."""
    for dtype in _DTYPES:
        yield scores("f", dtype, 64, 16384 if full else 4096, _F, _D)
        yield scores("b", dtype, 64, 4096 if full else 1024, _F, _D)
    yield scores("fb", torch.float32, 16, 64, _F, _D, compiled=True)
    yield score_all(64, 1024, _F, 4096)
    yield groups(64, 64, _F, _D)
    yield pairs("f", torch.float32, 8192, _F, _D)
    yield pairs("fb", torch.float32, 8192, _F, _D)
    for dtype in (*_DTYPES, torch.int8):
        peers = ("bfloat16",) if dtype == torch.int8 else ("iem_scores",)
        yield topk(dtype, 1, 100_000, _F, _K, peers=peers)
    for rows, depth, outputs in ((8192, 576, _F), (1024, 4096, _F), (32, 1024, 1024), (32, 4096, 4096)):
        yield linear(rows, depth, outputs)
    for depth, outputs in ((384, 1536), (1536, 384), (576, 1536)):
        yield linear_int8(512, depth, outputs)
    if full:
        yield from _more()


def _more() -> Iterator[Case]:
    for dtype in _DTYPES:
        for hidden in (256, 1024):
            yield scores("f", dtype, 64, 16384, hidden, _D)
        yield scores("f", dtype, 1, 65536, _F, _D)
        yield scores("f", dtype, 1024, 1024, _F, _D)
        yield pairs("fb", dtype, 65536, _F, _D)
    yield score_all(32, 256, _F, _D, compiled=True)
    yield score_all(64, 4096, _F, _D)
    for passages in (10_000, 1_000_000, 10_000_000):
        for dtype in (*_DTYPES, torch.int8):
            # Ten million passages in float32 are 20 GB; in plain torch the others take minutes.
            if passages < 10_000_000:
                yield topk(dtype, 1, passages, _F, _K)
            elif dtype != torch.float32:
                yield topk(dtype, 1, passages, _F, _K, backends=("cpu",))
    yield topk(torch.bfloat16, 64, 100_000, _F, _K)


def test_interaction(outcome):
    assert "failure" not in outcome, outcome["failure"]
