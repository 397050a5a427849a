"""Adds the C++ kernels of ``csrc/cpu`` where torch and GCC are there; all else is declared in pyproject.toml.

``D2LLM_KERNELS_BUILD``: ``auto`` builds what can be built and says nothing where it cannot, ``cpu`` insists,
``none`` builds nothing. Installing needs neither a compiler nor the network.
"""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from setuptools import setup
from setuptools.errors import CompileError

CHOICES = ("auto", "cpu", "cuda", "none")
FLAGS = [
    "-O3",
    "-g0",
    "-fopenmp",
    "-Wno-psabi",
    "-Wno-maybe-uninitialized",
    *os.environ.get("D2LLM_KERNELS_FLAGS", "").split(),
]


def _compiler() -> str | None:
    """First line of the version of the C++ compiler, or None where there is no GCC."""
    command = os.environ.get("CXX") or "g++"
    if not (path := shutil.which(command.split()[0])):
        return None
    shown = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    # The kernels use GCC's vector extensions; clang lacks some.
    return shown.splitlines()[0] if "Free Software Foundation" in shown else None


def _obstacle() -> str | None:
    """Why the C++ kernels cannot be built here, or None."""
    if platform.system() != "Linux":
        return f"they are built on Linux only, this is {platform.system()}"
    if _compiler() is None:
        return "no g++ was found"
    try:
        import torch  # noqa: F401
    except ImportError:
        return "torch cannot be imported; install it first and pass --no-build-isolation to pip"
    return None


def _extension(optional: bool) -> dict[str, Any]:
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension, is_ninja_available

    class Build(BuildExtension):
        def build_extensions(self) -> None:
            try:
                super().build_extensions()
            except RuntimeError as error:
                if not optional:
                    raise CompileError(str(error)) from error
                print(f"d2llm: the C++ kernels are left out, they did not compile: {error}", file=sys.stderr)

    defines = {"TORCH_VERSION": torch.__version__, "COMPILER": _compiler(), "FLAGS": " ".join(FLAGS)}
    extension = CppExtension(
        "d2llm_kernels._cpu",
        sorted(str(path) for path in Path("csrc/cpu").glob("*.cpp")),
        depends=sorted(str(path) for path in Path("csrc/cpu").glob("*.h")),
        define_macros=[(f"D2LLM_{name}", f'"{value}"') for name, value in defines.items()],
        extra_compile_args=FLAGS,
        # OpenMP comes from torch's own copy: a second runtime would have threads of its own.
        extra_link_args=[flag for flag in FLAGS if flag != "-fopenmp"],
        optional=optional,
    )
    options = {"use_ninja": is_ninja_available()}
    return {"ext_modules": [extension], "cmdclass": {"build_ext": Build.with_options(**options)}}


def kernels() -> dict[str, Any]:
    """What ``D2LLM_KERNELS_BUILD`` asks for, as arguments of ``setup``."""
    asked = os.environ.get("D2LLM_KERNELS_BUILD") or "auto"
    if asked not in CHOICES:
        raise SystemExit(f"D2LLM_KERNELS_BUILD: expected one of {CHOICES}, got {asked!r}")
    if asked == "cuda":
        raise SystemExit("D2LLM_KERNELS_BUILD: there are no CUDA kernels to build yet; expected auto, cpu or none")
    if asked == "none":
        return {}
    obstacle = _obstacle()
    if obstacle is None:
        return _extension(optional=asked == "auto")
    if asked == "cpu":
        raise SystemExit(f"D2LLM_KERNELS_BUILD=cpu: the C++ kernels cannot be built: {obstacle}")
    return {}


setup(**kernels())
