"""Freed memory goes back to the system now and then.

Batches of ever other sizes leave holes between blocks in use, which glibc keeps: 70 to 100 MB after some thousand
requests, and more the longer a server lives.
"""

import ctypes
import sys
import time
from collections.abc import Callable

#: Seconds from one time to the next: a walk through the heap takes milliseconds.
EVERY = 10.0


class Trimming:
    """Gives freed memory back when called, every so many seconds at most; nothing where there is no glibc."""

    def __init__(self, every: float = EVERY) -> None:
        # Of other systems' libraries none has it.
        self._trim: Callable[[int], int] | None = (
            getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
        )
        self._every, self._due = every, time.monotonic() + every

    def __call__(self) -> None:
        if self._trim is not None and time.monotonic() >= self._due:
            self._trim(0)
            self._due = time.monotonic() + self._every
