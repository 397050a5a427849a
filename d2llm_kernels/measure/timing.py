"""How long a call takes: by the host's clock on a CPU, by events with a cold L2 cache on a GPU."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from d2llm_kernels.measure import memory

Function = Callable[[], object]

# Several times the L2 cache of any GPU so far.
_COLD_BYTES = 256 << 20
_MOST_FLUSHES = 40


@dataclass(frozen=True)
class Sample:
    """Times of one call in seconds.

    Args:
        median_s, low_s, high_s: the median and the deciles around it. p99_s: the 99th percentile, or the longest of
            fewer than a hundred runs.
        runs: how many.
        host_s: the host's own time to issue the call.
        peak_bytes: most memory that the call held at once, None where nobody counts.
    """

    median_s: float
    low_s: float
    high_s: float
    p99_s: float
    runs: int
    host_s: float
    peak_bytes: int | None

    @property
    def spread(self) -> float:
        """Distance of the outer deciles, as a share of the median."""
        return (self.high_s - self.low_s) / self.median_s if self.median_s else 0.0


class Timer:
    """Times calls by the host's clock; the base of the GPU's timer, which differs in single methods alone.

    Args:
        seconds: time to spend on the runs of one call.
        fewest, most: bounds of their number.
    """

    device = torch.device("cpu")

    def __init__(self, seconds: float = 0.0, fewest: int = 2, most: int = 2) -> None:
        self.seconds, self.fewest, self.most = seconds, fewest, most

    def sample(self, call: Function) -> Sample:
        """Warm up and count memory, then time ``call`` as often as its share of time allows."""
        peak = self.warm_up(call)
        host, once = self._once(call)
        runs = max(self.fewest, min(self.most, int(self.seconds / max(once, 1e-6))))
        times = sorted(self.series(call, runs, host))
        tenth, last = runs // 10, len(times) - 1
        return Sample(
            statistics.median(times),
            times[tenth],
            times[last - tenth],
            times[min(last, math.ceil(0.99 * runs))],
            runs,
            host,
            peak,
        )

    def synchronize(self) -> None:
        """Wait until the device has done all that was asked of it."""

    def warm_up(self, call: Function) -> int | None:
        """Make ``call`` once; most bytes that it held at once, beside what there was before."""
        return memory.peak_bytes(call)

    def free(self) -> None:
        """Give unused memory back to the device."""

    def series(self, call: Function, runs: int, host: float) -> list[float]:
        """Seconds of each of ``runs`` calls, which the host needs ``host`` seconds to issue."""
        return [self._once(call)[1] for _ in range(runs)]

    def _once(self, call: Function) -> tuple[float, float]:
        """Seconds that the host needs to issue one call, and seconds until it is done."""
        self.synchronize()
        start = time.perf_counter()
        call()
        issued = time.perf_counter()
        self.synchronize()
        return issued - start, time.perf_counter() - start


class GpuTimer(Timer):
    """Times calls by CUDA events.

    Before each run a large buffer is read: the L2 cache then holds nothing of the call's inputs. It is read, not
    written, because lines to write back would be charged to the run; and it is read often enough that the host has
    issued the whole call before the GPU comes to it, so that events enclose the GPU's work and not the host's.
    """

    device = torch.device("cuda")

    def __init__(self, seconds: float = 0.4, fewest: int = 3, most: int = 200) -> None:
        super().__init__(seconds, fewest, most)
        self._cold = torch.randn(_COLD_BYTES // 4, device=self.device)
        self._cold.sum()
        self._flush_s = min(self._once(lambda: self._cold.sum())[1] for _ in range(5))

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def warm_up(self, call: Function) -> int | None:
        # The first call may allocate what libraries keep.
        call()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def free(self) -> None:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()

    def series(self, call: Function, runs: int, host: float) -> list[float]:
        flushes = min(_MOST_FLUSHES, 1 + math.ceil(1.5 * host / self._flush_s))
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(runs)]
        for start, end in events:
            for _ in range(flushes):
                self._cold.sum()
            start.record()
            call()
            end.record()
        torch.cuda.synchronize()
        return [start.elapsed_time(end) / 1e3 for start, end in events]
