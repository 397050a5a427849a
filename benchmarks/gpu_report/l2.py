"""The rate at which multiprocessors read what lies in the L2 cache: what bounds kernels that read tokens twice."""

import torch
import triton
import triton.language as tl

from d2llm_kernels.measure.timing import Timer

# Elements of float32 that a program reads at a time, and blocks that are in flight together.
_BLOCK, _FLIGHT = 2048, 4
# A third of the L2 cache of the smallest GPU in question, and how often all of it is read.
_BYTES, _TIMES = 16 << 20, 256
_PROGRAMS = 2048


@triton.jit
def _read(buffer, sums, blocks, turns, BLOCK: tl.constexpr, FLIGHT: tl.constexpr):
    """Each program sums blocks of the buffer, FLIGHT of them at a time, beside those that its neighbours read."""
    program, programs = tl.program_id(0), tl.num_programs(0)
    lanes = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for turn in range(0, turns):
        for flight in tl.static_range(FLIGHT):
            block = (program + (turn * FLIGHT + flight) * programs) % blocks
            # Past the L1 cache, which other programs of the multiprocessor may have filled with it.
            total += tl.load(buffer + block * BLOCK + lanes, cache_modifier=".cg")
    tl.store(sums + program, tl.sum(total, 0))


def measure(timer: Timer, smoke: bool) -> float:
    """Bytes read in a second.

    Raises:
        RuntimeError: if the sums are wrong.
    """
    # An odd number of blocks, so that a program comes by all of them.
    blocks = 5 if smoke else _BYTES // (4 * _BLOCK) - 1
    programs = 4 if smoke else _PROGRAMS
    turns = 2 if smoke else _TIMES * blocks // (programs * _FLIGHT)
    buffer = torch.randn(blocks, _BLOCK, device=timer.device)
    sums = torch.empty(programs, device=timer.device)

    def run() -> None:
        _read[(programs,)](buffer, sums, blocks, turns, BLOCK=_BLOCK, FLIGHT=_FLIGHT, num_warps=4)

    run()
    reads = torch.arange(turns * _FLIGHT, device=timer.device)[None] * programs
    which = (torch.arange(programs, device=timer.device)[:, None] + reads) % blocks
    expected = buffer.double().sum(1)[which].sum(1)
    if not torch.allclose(sums.double(), expected, rtol=1e-3, atol=1.0):
        raise RuntimeError("the sums of what was read are wrong")
    return 4 * _BLOCK * programs * turns * _FLIGHT / timer.sample(run).median_s
