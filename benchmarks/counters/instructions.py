"""Instructions that a call executes in its own thread, exactly; on Linux with an x86-64 processor and g++.

Slow, some 30 microseconds an instruction on a virtual machine: for calls of a hundred thousand or so. It needs no
counter of the processor, which virtual machines rarely have, and knows every instruction that the processor does.
"""

import ctypes
import platform
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

# Without a red zone below the stack, so that pushing the flags overwrites nothing.
_COMMAND = ("g++", "-O1", "-shared", "-fPIC", "-mno-red-zone")
_SOURCE = Path(__file__).with_suffix(".cpp")


def missing() -> str | None:
    """Why instructions cannot be counted here, or None."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return "instructions are counted on Linux on x86-64 alone"
    return None if shutil.which("g++") else "counting instructions needs g++"


class Counter:
    """Counts instructions.

    Args:
        folder: where its library is compiled.
    """

    def __init__(self, folder: Path) -> None:
        library = folder / "instructions.so"
        subprocess.run([*_COMMAND, str(_SOURCE), "-o", str(library)], check=True)
        # Python's lock is kept: nothing else may run in between.
        self._library = ctypes.PyDLL(str(library))
        self._library.end.restype = ctypes.c_int64
        self._own = self.count(lambda: None)

    def count(self, call: Callable[[], object]) -> int:
        """Instructions of one call, after two to warm up; what counting itself takes is left out."""
        for _ in range(2):
            call()
        self._library.begin()
        call()
        return int(self._library.end()) - getattr(self, "_own", 0)
