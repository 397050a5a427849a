"""What Triton would compile a kernel anew for, found without a GPU.

Triton keeps a compiled kernel for each set of dtypes, constants and options, and for what it finds of the arguments by
itself: whether an integer is 1 or a multiple of 16, whether a pointer is aligned. A size that changes from batch to
batch must not be among those, or training stops to compile in the middle of an epoch.
"""

from collections.abc import Callable, Sequence

from tools.cross_compile import Launch, recorded, source

Variants = dict[str, set[tuple[object, ...]]]


def variants(call: Callable[[], object], arch: str = "sm_90") -> Variants:
    """What Triton would compile for ``call`` on meta tensors: by kernel, the variants of it."""
    launches: list[Launch] = []
    with recorded(arch, "", launches):
        call()
    found: Variants = {}
    for launch in launches:
        code, options = source(launch)
        key = (*code.signature.items(), *code.constants.items(), *_hashable(code.attrs), *options.items())
        found.setdefault(launch.kernel.__name__, set()).add(key)
    return found


def assert_compiled_once(calls: Sequence[Callable[[], object]], arch: str = "sm_90") -> None:
    """The first of these calls, which differ in sizes alone, compiles all that the others launch."""
    known = variants(calls[0], arch)
    assert known, "nothing was launched"
    for number, call in enumerate(calls[1:], 1):
        for kernel, found in variants(call, arch).items():
            (first, *_), new = known[kernel], found - known[kernel]
            assert not new, f"{kernel} is compiled again for call {number}: {set(first) ^ set(new.pop())}"


def _hashable(attributes: dict[tuple[int, ...], list[list[object]]]) -> list[tuple[object, ...]]:
    return [(place, *map(tuple, found)) for place, found in attributes.items()]
