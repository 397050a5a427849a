"""What the report measures, the targets first."""

from collections.abc import Iterator

import torch

from d2llm_kernels.measure.case import Case, Target
from d2llm_kernels.measure.in_batch import losses
from d2llm_kernels.measure.interaction import pairs, scores, topk
from d2llm_kernels.measure.lora import lora
from d2llm_kernels.measure.pooling import Sizes, pma, pooling

_BF16, _FP16, _FP32 = torch.bfloat16, torch.float16, torch.float32
# The batch of the targets.
_MAIN: Sizes = (64, 256, 4096, 32)


def cases(smoke: bool) -> Iterator[Case]:
    """The rows, or a tiny one of each sort."""
    if smoke:
        yield from _smoke()
        return
    yield from _pooling()
    yield from _interaction()
    yield losses(8192, 8, priority=2)
    yield losses(4096, 8, priority=3)
    for passes in ("f", "fb"):
        yield lora(passes, _BF16, 16384, 4096, 4096, priority=3)


def _pooling() -> Iterator[Case]:
    yield pooling("f", _BF16, _MAIN, target=Target(ratio=20, percent=60), compiled=True)
    yield pooling("b", _BF16, _MAIN, target=Target(ratio=12, percent=50))
    yield pooling("fb", _BF16, _MAIN, compiled=True)
    yield pma("fb", _BF16, _MAIN, compiled=True)
    for priority, dtype, sizes, kind in (
        (2, _BF16, _MAIN, "packed"),
        (3, _BF16, _MAIN, "masked"),
        (3, _BF16, (64, 256, 1024, 16), "packed"),
        (3, _BF16, (64, 256, 576, 9), "packed"),
        (3, _FP32, _MAIN, "whole"),
        (4, _FP32, (64, 256, 576, 9), "packed"),
        (4, _FP16, _MAIN, "whole"),
        (5, _BF16, (256, 512, 1024, 16), "whole"),
    ):
        for passes in ("f", "b"):
            yield pooling(passes, dtype, sizes, kind, priority)


def _interaction() -> Iterator[Case]:
    yield scores("f", _BF16, 4096, 65536, 512, 4096, target=Target(ratio=10, percent=55), compiled=True)
    yield scores("fb", _BF16, 4096, 4096, 512, 4096, target=Target(ratio=8), compiled=True)
    yield topk(_BF16, 1, 1_000_000, 512, 100, target=Target(milliseconds=2.5))
    yield scores("fb", _BF16, 8192, 8192, 512, 4096, priority=2)
    yield topk(_BF16, 64, 1_000_000, 512, 100, priority=2)
    yield pairs("f", _BF16, 65536, 512, 4096)
    yield pairs("fb", _BF16, 65536, 512, 4096)
    yield scores("b", _BF16, 4096, 4096, 512, 4096, priority=3)
    yield scores("f", _FP32, 1024, 16384, 512, 1024, priority=3)
    yield scores("fb", _FP32, 2048, 2048, 512, 1024, priority=4)
    yield scores("f", _BF16, 4096, 16384, 256, 1024, priority=4)
    yield scores("f", _BF16, 4096, 16384, 1024, 4096, priority=4)
    yield scores("f", _FP16, 4096, 16384, 512, 4096, priority=5)


def _smoke() -> Iterator[Case]:
    sizes = (2, 9, 16, 2)
    yield pooling("f", _FP32, sizes, target=Target(ratio=20, percent=60), compiled=True)
    yield pooling("b", _FP32, sizes, target=Target(ratio=12, percent=50))
    yield pooling("fb", _FP32, sizes, compiled=True)
    for kind in ("masked", "packed"):
        yield pooling("f", _FP32, sizes, kind)
        yield pooling("b", _FP32, sizes, kind)
    yield pma("fb", _FP32, sizes, priority=1)
    yield scores("f", _FP32, 3, 40, 16, 24, target=Target(ratio=10, percent=55), compiled=True)
    yield scores("fb", _FP32, 4, 20, 16, 24, target=Target(ratio=8))
    yield pairs("f", _FP32, 20, 16, 24)
    yield pairs("fb", _FP32, 20, 16, 24)
    yield topk(_FP32, 2, 60, 16, 5, target=Target(milliseconds=2.5))
    yield losses(18, 2)
    yield lora("fb", _FP32, 18, 20, 24, 4)
