"""Memory that a call holds at once on a CPU, counted at torch's allocator: exact, and the same on every run."""

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile


def allocations(function: Callable[[], object]) -> list[int]:
    """Bytes of every tensor that ``function`` allocates (positive) or frees (negative), in order of time."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        function()
    assert recorded.profiler is not None and recorded.profiler.kineto_results is not None
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    return [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]


def peak_bytes(function: Callable[[], object]) -> int:
    """Most bytes of tensors that ``function`` holds at a time, its results included, beyond what was there before."""
    held = peak = 0
    for change in allocations(function):
        held += change
        peak = max(peak, held)
    return peak
