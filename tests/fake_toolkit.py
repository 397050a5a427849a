"""A CUDA toolkit that compiles nothing, for rehearsals of what builds the CUDA kernels."""

import os
from pathlib import Path

_NVCC = """#!/bin/sh
echo "$@" >> {log}
case "$1" in
--version) echo "Cuda compilation tools, release {release}"; exit ;;
-v) echo '#$ TOP={toolkit}/bin/..' >&2; exit 1 ;;
esac
{end}
"""
_GCC = """#!/bin/sh
case "$1" in
--version) echo "g++ 12.2.0"; echo "Copyright (C) Free Software Foundation, Inc."; exit ;;
-dump*) echo 12.2.0; exit ;;
esac
{end}
"""
# Leaves an empty file where the result would be.
_EMPTY = 'while [ $# -gt 0 ]; do if [ "$1" = -o ]; then : > "$2"; fi; shift; done'
# To setup.py whatever torch is installed passes for one with CUDA. It has no public switch for that.
_SITE = """import sys
if "setup.py" in sys.orig_argv:
    import torch
    torch.version.cuda = "13.0"
    torch.cuda._is_compiled = lambda: True
    torch.cuda.is_available = lambda: False
"""


class Toolkit:
    """An nvcc, a wrapper of it in another folder, and a g++, none of which compile.

    Args:
        folder: where they are put.
        broken: whether nvcc fails.
        release: the version that nvcc says it has.
    """

    def __init__(self, folder: Path, broken: bool = False, release: str = "13.0") -> None:
        self.home, self.log = folder / "toolkit", folder / "nvcc.log"
        wrappers = folder / "wrappers/bin"
        end = "echo 'nvcc error: out of luck' >&2; exit 2" if broken else _EMPTY
        nvcc = self.home / "bin/nvcc"
        _script(nvcc, _NVCC.format(log=self.log, toolkit=self.home, end=end, release=release))
        _script(wrappers / "nvcc", f'#!/bin/sh\nexec {nvcc} "$@"\n')
        _script(wrappers / "g++", _GCC.format(end=_EMPTY))
        (folder / "site").mkdir()
        (folder / "site/sitecustomize.py").write_text(_SITE)
        self.environment = {
            "PATH": f"{wrappers}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(folder / "site"),
            "CXX": str(wrappers / "g++"),
            "TORCH_CUDA_ARCH_LIST": "9.0a",
        }


def _script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
