"""Attention pooling and the PMA module."""

from collections.abc import Iterator

import torch

from d2llm_kernels.measure.case import Case
from d2llm_kernels.measure.pooling import pma, pooling

_DTYPES = (torch.float32, torch.bfloat16)
# (D, H) of a small, a middling and a large decoder.
_WIDTHS = ((576, 9), (1024, 16), (4096, 32))
# Tokens of the rows that vary another size.
_TOKENS = 8192


def cases(full: bool) -> Iterator[Case]:
    """The rows."""
    for width, heads in _WIDTHS:
        for dtype in _DTYPES:
            for passes in ("f", "b"):
                # Literally, a large decoder's backward pass alone takes a minute.
                literal = full or passes == "f" or width < 4096
                yield pooling(passes, dtype, (32, 256, width, heads), literal=literal)
    for kind in ("masked", "packed"):
        yield pooling("f", torch.bfloat16, (32, 256, 1024, 16), kind)
    yield pooling("fb", torch.float32, (8, 64, 576, 9), compiled=True)
    for width, heads in _WIDTHS[1:]:
        yield pma("f", torch.float32, (32, 256, width, heads))
    yield pma("fb", torch.float32, (32, 256, 576, 9))
    if full:
        yield from _more()


def _more() -> Iterator[Case]:
    for dtype in _DTYPES:
        for passes in ("f", "b"):
            for length in (16, 64, 1024, 4096):
                sizes = (_TOKENS // length, length, 1024, 16)
                yield pooling(passes, dtype, sizes, literal=length <= 1024 and passes == "f")
            for width, heads in ((2048, 32), (8192, 64)):
                yield pooling(passes, dtype, (32, 256, width, heads), literal=width < 8192 and passes == "f")
            for heads in (32, 64):
                yield pooling(passes, dtype, (32, 256, 1024, heads), literal=False)
            for kind in ("masked", "packed"):
                yield pooling(passes, dtype, (32, 256, 4096, 32), kind, literal=False)
    yield pma("f", torch.float32, (32, 256, 576, 9), compiled=True)
    yield pma("fb", torch.float32, (32, 256, 1024, 16))


def test_pooling(outcome):
    assert "failure" not in outcome, outcome["failure"]
