"""Compile csrc/cuda with a C++ compiler, against the emulation of this folder: python -m tests.emulation.build PATH.

The headers in ``include/`` come before those of CUDA, of torch and of csrc/cuda that have the same names.
"""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import torch
from torch.utils.cpp_extension import include_paths, library_paths

HERE = Path(__file__).parent
CUDA = HERE.parents[1] / "csrc/cuda"


def commands(library: Path) -> list[list[str]]:
    """One command a source, then the one that links ``library``."""
    folder = library.parent
    defines = {"TORCH_VERSION": torch.__version__, "COMPILER": "g++", "ARCHITECTURES": "emulated"}
    flags = [
        "-std=c++20",
        "-O2",
        "-g1",
        "-fno-strict-aliasing",
        "-fPIC",
        "-Wno-psabi",
        "-DTORCH_EXTENSION_NAME=_cuda",
    ]
    flags += [f'-DD2LLM_{name}="{value}"' for name, value in defines.items()]
    flags += [f"-I{path}" for path in (HERE / "include", HERE, CUDA, sysconfig.get_path("include"), *include_paths())]
    sources = sorted([*CUDA.rglob("*.cu"), *CUDA.glob("*.cpp"), *HERE.glob("*.cpp")])
    objects = [folder / f"{source.parent.name}.{source.name}.o" for source in sources]
    made = [
        ["g++", *flags, "-c", "-x", "c++", str(source), "-o", str(target)]
        for source, target in zip(sources, objects, strict=True)
    ]
    paths = [f"-L{path}" for path in library_paths()]
    return [*made, ["g++", "-shared", *map(str, objects), *paths, "-lc10", "-ltorch", "-ltorch_cpu", "-ltorch_python",
                    "-o", str(library)]]  # fmt: skip


def main(path: str) -> None:
    """Make the library, or say what is missing here and make none."""
    if shutil.which("g++") is None or not Path(sysconfig.get_path("include"), "Python.h").exists():
        print("tests.emulation.build: no g++ or no headers of Python here, nothing is emulated", file=sys.stderr)
        return
    target = Path(path).resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    for command in commands(target):
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main(sys.argv[1])
