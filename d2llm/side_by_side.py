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
    run: Callable[[_Batch], _Result], batches: Sequence[_Batch], device: torch.device
) -> Iterator[_Result]:
    """``run`` of each batch, in their order and without gradients.

    On a CPU as many batches are in hand as torch has threads, where there are enough of them; elsewhere one is.
    """
    threads = torch.get_num_threads()

    def alone(batch: _Batch) -> _Result:
        # Of a thread, as torch's number of threads is.
        with torch.inference_mode():
            return run(batch)

    if device.type != "cpu" or threads == 1 or len(batches) < _ENOUGH * threads:
        yield from map(alone, batches)
        return
    pool = ThreadPoolExecutor(threads, "batches", torch.set_num_threads, (1,))
    try:
        yield from pool.map(alone, batches)
    finally:
        pool.shutdown(cancel_futures=True)
        # What one thread sets is also what new threads begin with, and what MKL has for all.
        torch.set_num_threads(threads)
