"""Variants of rows that only D2LLM_KERNELS_EXPERIMENTAL=1 brings: kernels for one GPU that have yet to prove faster."""

from typing import Any

import torch

from d2llm_kernels import backends
from d2llm_kernels.backends.cuda import library
from d2llm_kernels.measure.case import Case, measure_variant
from d2llm_kernels.measure.interaction import FP8
from d2llm_kernels.measure.timing import Timer

#: The kernels for Hopper GPUs.
HOPPER = "cuda, Hopper"
_HALF = (torch.float16, torch.bfloat16)


def available(device: torch.device) -> bool:
    """Whether this device is a GPU that runs the kernels for Hopper GPUs."""
    if device.type != "cuda" or backends.missing("cuda"):
        return False
    return torch.cuda.get_device_capability(device) == (9, 0)


def variants(case: Case, device: torch.device) -> list[str]:
    """What a row has to offer on this device."""
    if not available(device):
        return []
    names = []
    if case.dtype in _HALF and case.operation in ("attn_pool forward", "iem_scores forward", "iem_topk"):
        names.append(HOPPER)
    if case.dtype == torch.bfloat16 and case.operation == "iem_scores forward":
        names.append(FP8)
    return names


def measure(case: Case, name: str, timer: Timer, floor: float) -> dict[str, Any]:
    """One of ``variants``, judged and timed as the others are."""
    with library.experimental():
        return measure_variant(case.prepare(timer.device), "cuda" if name == HOPPER else name, timer, floor)
