"""Batches side by side on a CPU, each in one thread.

Between an LLM's products lies much that is too small to be shared out, and at the end of each every thread waits for
the slowest. Threads that have a batch each wait for nobody.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

_Batch = TypeVar("_Batch")
_Result = TypeVar("_Result")
#: Batches for every thread from which on they are shared out: with fewer, some threads would soon have none.
_ENOUGH = 2


def side_by_side(
    run: Callable[[_Batch], _Result], batches: Sequence[_Batch], device: torch.device, enough: int = _ENOUGH
) -> Iterator[_Result]:
    """``run`` of each batch, in their order.

    On a CPU as many batches are in hand as torch has threads, where there are ``enough`` of them for each; elsewhere
    one is. What torch keeps for each thread, such as the inference mode, autocast and whether there are gradients, is
    for ``run`` to set.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1 or len(batches) < enough * threads:
        yield from map(run, batches)
        return
    pool = ThreadPoolExecutor(threads, "batches", torch.set_num_threads, (1,))
    try:
        yield from pool.map(run, batches)
    finally:
        pool.shutdown(cancel_futures=True)
        # What one thread sets is also what new threads begin with, and what MKL has for all.
        torch.set_num_threads(threads)
